//! The autoscaler's annotations.
//!
//! Source: `knative/serving/pkg/apis/autoscaling/annotation_validation.go`.

use serde_json::Value;

use super::errors::Errors;
use super::{annotation, go};
use crate::config::Autoscaler;
use crate::serving::annotations::{self as keys, CLASS_HPA, CLASS_KPA, Spellings};

/// Most pods that a number can express.
const MOST: i64 = i32::MAX as i64;
const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3_600 * SECOND;

/// Checks the annotations of a Revision or its template.
pub(super) fn validate(annotations: &Value, settings: &Autoscaler) -> Errors {
    let mut errors = Errors::default();
    if annotations.as_object().is_none_or(|map| map.is_empty()) {
        return errors;
    }
    class(annotations, settings, &mut errors);
    scales(annotations, settings, &mut errors);
    range(annotations, keys::PANIC_WINDOW_PERCENTAGE, 1.0, 100.0, &mut errors);
    range(annotations, keys::PANIC_THRESHOLD_PERCENTAGE, 110.0, 1_000.0, &mut errors);
    range(annotations, keys::TARGET_UTILIZATION_PERCENTAGE, 1.0, 100.0, &mut errors);
    if let Some((key, value)) = annotation(annotations, keys::TARGET) {
        match go::float(value) {
            None => errors.invalid(value, key),
            Some(number) if number < 0.01 => errors.add(format!("target {value} should be at least 0.01"), [key]),
            Some(_) => {}
        }
    }
    if let Some((key, value)) = annotation(annotations, keys::TARGET_BURST_CAPACITY)
        && go::float(value).is_none_or(|number| number < 0.0 && number != -1.0)
    {
        errors.invalid(value, key);
    }
    duration(annotations, keys::WINDOW, (6 * SECOND, "6s"), true, &mut errors);
    duration(annotations, keys::SCALE_DOWN_DELAY, (0, "0s"), true, &mut errors);
    duration(annotations, keys::SCALE_TO_ZERO_POD_RETENTION_PERIOD, (0, "0s"), false, &mut errors);
    initial(annotations, settings, &mut errors);
    errors
}

fn class(annotations: &Value, settings: &Autoscaler, errors: &mut Errors) {
    let class = annotation(annotations, keys::CLASS);
    if let Some((key, value)) = class
        && value.ends_with(".knative.dev")
        && value != CLASS_KPA
        && value != CLASS_HPA
    {
        errors.invalid(value, key);
    }
    if let Some((_, metric)) = annotation(annotations, keys::METRIC) {
        let class = class.map_or(settings.class.as_str(), |(_, value)| value);
        // Foreign classes have metrics of their own.
        let known = match class {
            CLASS_KPA => metric == "concurrency" || metric == "rps",
            CLASS_HPA => !metric.is_empty(),
            _ => true,
        };
        if !known {
            errors.invalid(metric, keys::METRIC[0]);
        }
    }
    if let Some((key, algorithm)) = annotation(annotations, keys::METRIC_AGGREGATION_ALGORITHM)
        && class.is_some_and(|(_, value)| value == CLASS_KPA)
        && !["", "linear", "weighted-exponential", "weightedExponential"].contains(&algorithm)
    {
        errors.invalid(algorithm, key);
    }
}

fn range(annotations: &Value, spellings: Spellings, least: f64, most: f64, errors: &mut Errors) {
    let Some((key, value)) = annotation(annotations, spellings) else { return };
    match go::float(value) {
        None => errors.invalid(value, key),
        Some(number) if number < least || number > most => errors.out_of_bounds(value, least, most, key),
        Some(_) => {}
    }
}

fn duration(annotations: &Value, spellings: Spellings, least: (i64, &str), whole: bool, errors: &mut Errors) {
    let Some((key, value)) = annotation(annotations, spellings) else { return };
    match base::duration::parse_nanoseconds(value) {
        None => errors.invalid(value, key),
        Some(time) if time < least.0 || time > HOUR => errors.out_of_bounds(value, least.1, "1h0m0s", key),
        Some(time) if whole && time % SECOND != 0 => {
            errors.add("must be specified with at most second precision", [key]);
        }
        Some(_) => {}
    }
}

/// A number of pods; 0 when it is absent or wrong.
fn count(annotations: &Value, spellings: Spellings, errors: &mut Errors) -> i64 {
    let Some((key, value)) = annotation(annotations, spellings) else { return 0 };
    match go::integer(value) {
        Some(count) if (0..=i128::from(MOST)).contains(&count) => return i64::try_from(count).unwrap_or(MOST),
        Some(_) => errors.out_of_bounds(value, 0, MOST, key),
        None => errors.invalid(value, key),
    }
    0
}

fn scales(annotations: &Value, settings: &Autoscaler, errors: &mut Errors) {
    let min = count(annotations, keys::MIN_SCALE, errors);
    let max = count(annotations, keys::MAX_SCALE, errors);
    if max != 0 && max < min {
        let message = format!("max-scale={max} is less than min-scale={min}");
        errors.add(message, [keys::MAX_SCALE[0], keys::MIN_SCALE[0]]);
    }
    let limit = i64::from(settings.max_scale_limit);
    if let Some((key, _)) = annotation(annotations, keys::MAX_SCALE).filter(|_| limit != 0) {
        if max > limit {
            errors.out_of_bounds(max, 1, limit, key);
        } else if max == 0 {
            errors.add(format!("max-scale=0 (unlimited), must be less than {limit}"), [key]);
        }
    }
    let Some((key, value)) = annotation(annotations, keys::ACTIVATION_SCALE) else { return };
    match go::integer(value).and_then(|count| i32::try_from(count).ok()).map(i64::from) {
        None => errors.invalid(value, key),
        Some(count) if min > count => {
            errors.add(format!("min-scale={min} is greater than activation-scale={count}"), [key]);
        }
        Some(count) if max < count && max != 0 => {
            errors.add(format!("max-scale={max} is less than activation-scale={count}"), [key]);
        }
        Some(count) if count < 2 => errors.add(format!("activation-scale={count} must be greater than 1"), [key]),
        Some(_) => {}
    }
}

fn initial(annotations: &Value, settings: &Autoscaler, errors: &mut Errors) {
    let Some((key, value)) = annotation(annotations, keys::INITIAL_SCALE) else { return };
    match go::integer(value).and_then(|count| i64::try_from(count).ok()) {
        None => errors.invalid(value, key),
        Some(count) if count < 0 => errors.invalid(value, &format!("{key} must be greater than 0")),
        Some(0) if !settings.allow_zero_initial_scale => {
            errors.invalid(value, &format!("{key}=0 not allowed by cluster"));
        }
        Some(_) => {}
    }
}
