use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Builds messages for tests.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    fn message(self, field: u64, inner: Message) -> Self {
        self.bytes(field, &inner.0)
    }
}

fn message() -> Message {
    Message::default()
}

fn body(version: &str, kind: &str, object: Message) -> Vec<u8> {
    let envelope = message().message(1, message().text(1, version).text(2, kind)).message(2, object);
    [MAGIC.to_vec(), envelope.0].concat()
}

#[test]
fn a_config_map_with_the_zeros_that_clients_send() {
    let metadata = message()
        .text(1, "a")
        .text(2, "")
        .text(3, "")
        .text(5, "")
        .number(7, 0)
        .message(8, message())
        .message(11, message().text(1, "app").text(2, "x"));
    let map = message()
        .message(1, metadata)
        .message(2, message().text(1, "k").text(2, "v"))
        .message(3, message().text(1, "b").bytes(2, &[0, 255]));
    assert_eq!(
        decode(&body("v1", "ConfigMap", map)),
        Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"app": "x"}},
            "data": {"k": "v"}, "binaryData": {"b": "AP8="}}))
    );
}

#[test]
fn special_types_and_inlined_messages() {
    let port = message()
        .text(1, "")
        .text(2, "TCP")
        .number(3, 80)
        .message(4, message().number(1, 1).number(2, 0).text(3, "http"))
        .number(5, 0);
    let service = message().message(1, message().text(1, "s")).message(2, message().message(1, port));
    let decoded = decode(&body("v1", "Service", service)).expect("a service");
    assert_eq!(decoded["spec"]["ports"], json!([{"protocol": "TCP", "port": 80, "targetPort": "http"}]));

    let volume = message().text(1, "v").message(2, message().message(6, message().text(1, "secret")));
    let probe = message()
        .message(
            1,
            message().message(2, message().text(1, "/").message(2, message().number(1, 0).number(2, 8080).text(3, ""))),
        )
        .number(2, 0)
        .number(3, 1);
    let limits = message().message(1, message().text(1, "cpu").message(2, message().text(1, "500m")));
    let security = message().number(4, 0);
    let container =
        message().text(1, "c").text(2, "i").message(8, limits).message(10, probe).message(15, security).number(16, 0);
    let spec = message().message(1, volume).message(2, container).number(4, 30).number(11, 0);
    let pod = message()
        .message(1, message().text(1, "p").message(8, message().number(1, 1_577_836_800).number(2, 0)))
        .message(2, spec);
    let decoded = decode(&body("v1", "Pod", pod)).expect("a pod");
    assert_eq!(decoded["metadata"]["creationTimestamp"], "2020-01-01T00:00:00Z");
    assert_eq!(decoded["spec"]["volumes"], json!([{"name": "v", "secret": {"secretName": "secret"}}]));
    assert_eq!(
        decoded["spec"]["containers"],
        json!([{"name": "c", "image": "i", "resources": {"limits": {"cpu": "500m"}},
            "livenessProbe": {"httpGet": {"path": "/", "port": 8080}, "timeoutSeconds": 1}, "securityContext": {"runAsUser": 0}}])
    );
    assert_eq!(decoded["spec"]["terminationGracePeriodSeconds"], 30);
}

#[test]
fn options_come_under_any_group_version() {
    let options = message().number(1, 0).text(4, "Foreground");
    assert_eq!(
        decode(&body("apps/v1", "DeleteOptions", options)),
        Ok(
            json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Foreground"})
        )
    );
}

#[test]
fn json_schemas_keep_their_unions() {
    let schema = message()
        .text(5, "object")
        .message(30, message().number(1, 1))
        .message(29, message().text(1, "n").message(2, message().text(5, "integer").message(8, message().text(1, "3"))))
        .message(24, message().message(1, message().text(5, "string")));
    let version = message()
        .text(1, "v1")
        .number(2, 1)
        .number(3, 1)
        .message(4, message().message(1, schema))
        .message(5, message().message(1, message()));
    let spec = message().text(1, "example.com").message(7, version).text(4, "Namespaced");
    let decoded = decode(&body("apiextensions.k8s.io/v1", "CustomResourceDefinition", message().message(2, spec)))
        .expect("a definition");
    let version = &decoded["spec"]["versions"][0];
    assert_eq!(
        version["schema"]["openAPIV3Schema"],
        json!({"type": "object", "additionalProperties": true, "items": {"type": "string"},
            "properties": {"n": {"type": "integer", "default": 3}}})
    );
    assert_eq!(version["subresources"], json!({"status": {}}));
}

#[test]
fn faults_are_named() {
    assert_eq!(decode(b"{}"), Err(ProtoError::Magic));
    let unknown = body("example.com/v1", "Thing", message());
    assert_eq!(decode(&unknown), Err(ProtoError::Kind { kind: "Thing".into(), version: "example.com/v1".into() }));
    let mut cut = body("v1", "ConfigMap", message().message(1, message().text(1, "name")));
    cut.pop();
    assert_eq!(decode(&cut), Err(ProtoError::Cut));
    let wrong = body("v1", "ConfigMap", message().number(1, 5));
    assert_eq!(decode(&wrong), Err(ProtoError::WireType { field: "metadata", wire: 0 }));
}

#[test]
fn depth_and_size_are_bounded() {
    let mut schema = message();
    for _ in 0..200 {
        schema = message().message(28, schema);
    }
    let version = message().message(4, message().message(1, schema));
    let deep = body(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        message().message(2, message().message(7, version)),
    );
    assert_eq!(decode(&deep), Err(ProtoError::Depth));
    let mut spec = message();
    for _ in 0..VALUE_LIMIT {
        spec = spec.message(2, message());
    }
    assert_eq!(decode(&body("v1", "Pod", message().message(2, spec))), Err(ProtoError::Size));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(kind in "(v1|apps/v1) (Pod|Deployment|Service)", bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        let (version, kind) = kind.split_once(' ').expect("two words");
        let _ = decode(&bytes);
        let _ = decode(&[MAGIC.to_vec(), bytes.clone()].concat());
        let _ = decode(&body(version, kind, Message(bytes)));
    }

    #[test]
    fn no_cut_or_flipped_message_makes_it_panic(at in 0_usize..200, flip in proptest::prelude::any::<u8>()) {
        let container = message().text(1, "c").text(2, "i").message(10, message().message(1, message().message(2, message().text(1, "/"))));
        let mut bytes = body("v1", "Pod", message().message(1, message().text(1, "p")).message(2, message().message(2, container)));
        let at = at % bytes.len();
        let _ = decode(&bytes[..at]);
        bytes[at] ^= flip;
        let _ = decode(&bytes);
    }
}
