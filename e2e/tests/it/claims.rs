//! Claims are protected while they are used, and in nobody's way afterwards.

use anyhow::Result;
use e2e::{Options, Platform, cannot_run, is_of_our_control_plane};

const OBJECTS: &str = "apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: used, namespace: shop }
spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 1Mi } } }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: unused, namespace: shop }
spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 1Mi } } }
---
apiVersion: v1
kind: Pod
metadata: { name: user, namespace: shop }
spec:
  containers: [{ name: main, image: nowhere.invalid/none, imagePullPolicy: Never }]
  volumes: [{ name: data, persistentVolumeClaim: { claimName: used } }]
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: volume }
spec: { accessModes: [ReadWriteOnce], capacity: { storage: 1Mi }, hostPath: { path: /nowhere } }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_with_claims_can_be_deleted() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() || is_of_our_control_plane("claims are its own controllers' work") {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.apply(OBJECTS).await?;
    platform.kubectl(&["delete", "pvc", "unused", "-n", "shop", "--timeout=60s"]).await?.ok()?;
    platform.kubectl(&["delete", "pv", "volume", "--timeout=60s"]).await?.ok()?;
    platform.kubectl(&["delete", "pvc", "used", "-n", "shop", "--wait=false"]).await?.ok()?;
    let waiting = platform.kubectl(&["get", "pvc", "used", "-n", "shop", "-o", "jsonpath={.metadata}"]).await?.ok()?;
    assert!(waiting.contains("deletionTimestamp") && waiting.contains("pvc-protection"), "{waiting}");
    platform.kubectl(&["delete", "namespace", "shop", "--timeout=60s"]).await?.ok()?;
    platform.stop().await
}
