//! Revisions that are not scaled by traffic.

use super::*;

const CLASS: &str = "autoscaling.knative.dev/class";

/// A service whose container requests a tenth of a core.
fn service_with_request(annotations: Value) -> Value {
    let mut service = service("r.example/hello:v1", annotations);
    service["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    service
}

impl Platform {
    fn scaling_active(&self) -> (String, String, String) {
        condition(&self.api.get(AUTOSCALERS, "hello-00001").unwrap(), "ScalingActive")
    }

    async fn until_scaling_active(&self, status: &str, words: &str) {
        for _ in 0..2_000 {
            let (found, _, message) = self.scaling_active();
            if found == status && message.contains(words) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("ScalingActive is not {status} ({words}): {:?}", self.scaling_active());
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_is_scaled_by_the_processor_time_of_its_pods_and_never_to_zero() {
    let platform = platform(Api::new()).await;
    let class = json!({CLASS: "hpa.autoscaling.knative.dev", "autoscaling.knative.dev/max-scale": "4"});
    platform.api.put(SERVICES, service_with_request(class));
    platform.until("Ready", "True").await;
    platform.until_scaling_active("False", "install metrics-server").await;
    sleep(Duration::from_secs(400)).await;
    assert_eq!(platform.api.list("pods").len(), 1, "what is not known changes nothing");

    platform.api.use_cpu(200);
    platform.until_pods(4).await;
    platform.until_scaling_active("True", "").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(platform.api.list("pods").len(), 4, "max-scale");
    let autoscaler = platform.api.get(AUTOSCALERS, "hello-00001").unwrap();
    assert_eq!((&autoscaler["status"]["desiredScale"], &autoscaler["status"]["actualScale"]), (&json!(4), &json!(4)));
    assert_eq!(condition(&autoscaler, "Ready").0, "True");

    // Traffic is nothing to it.
    platform.report(1_000.0);
    platform.api.use_cpu(0);
    let idle = Instant::now();
    let alone = platform.until_pods(1).await.duration_since(idle).as_secs_f64();
    assert!((295.0..=310.0).contains(&alone), "fewer pods after {alone} s");
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(platform.api.list("pods").len(), 1, "never to zero");
    assert_eq!(platform.look_again().await, Vec::<String>::new());

    // A new controller drops no pods before it has read what they use.
    platform.api.use_cpu(200);
    platform.until_pods(4).await;
    let platform = restart(platform).await;
    sleep(Duration::from_secs(4)).await;
    assert_eq!(platform.api.list("pods").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_service_from_being_scaled_by_use_is_told() {
    let platform = platform(Api::new()).await;
    platform.api.use_cpu(200);
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({CLASS: "hpa.autoscaling.knative.dev"})));
    platform.until("Ready", "True").await;
    platform.until_scaling_active("False", "set resources.requests.cpu").await;
    let other = json!({CLASS: "hpa.autoscaling.knative.dev", "autoscaling.knative.dev/metric": "queue-length"});
    platform.api.delete(SERVICES, "hello");
    platform.until_pods(0).await;
    platform.api.put(SERVICES, service_with_request(other));
    platform.until("Ready", "True").await;
    platform.until_scaling_active("False", "\"queue-length\"").await;
}

#[tokio::test(start_paused = true)]
async fn the_class_of_all_comes_from_the_settings() {
    let platform = platform(Api::new()).await;
    let data = json!({"pod-autoscaler-class": "hpa.autoscaling.knative.dev"});
    platform.api.put(CONFIG_MAPS, config_map("config-autoscaler", data));
    sleep(Duration::from_secs(1)).await;
    platform.api.use_cpu(200);
    platform.api.put(SERVICES, service_with_request(json!({"autoscaling.knative.dev/max-scale": "3"})));
    platform.until_pods(3).await;
    platform.api.put(CONFIG_MAPS, config_map("config-autoscaler", json!({})));
    platform.until_pods(0).await;
}

/// What it wants is read from the status that it writes; everything else of the PodAutoscaler is its own.
#[tokio::test(start_paused = true)]
async fn another_autoscaler_says_how_many_pods_there_are() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({CLASS: "scaler.example.com"})));
    platform.until_pods(1).await;
    platform.report(1_000.0);
    for desired in [3, 0, 2] {
        let mut autoscaler = platform.api.get(AUTOSCALERS, "hello-00001").unwrap();
        assert!(autoscaler["status"]["conditions"].is_null(), "{autoscaler}");
        autoscaler["status"] = json!({"desiredScale": desired});
        platform.api.put_status(AUTOSCALERS, autoscaler);
        platform.until_pods(desired).await;
    }
}
