//! The autoscaler's annotations.
//!
//! Source: `knative/serving/pkg/apis/autoscaling/annotation_validation.go`.

use serde_json::Value;

use super::Settings;
use super::errors::Errors;
use crate::serving::annotations::{self as keys, CLASS_HPA, CLASS_KPA, Spellings};

/// Most pods that a number can express.
const MOST: i64 = i32::MAX as i64;
const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3_600 * SECOND;

/// Annotations under their path.
struct Reader<'a> {
    annotations: &'a Value,
    path: &'a str,
}

impl<'a> Reader<'a> {
    /// Key and value in whichever spelling is there.
    fn get(&self, spellings: Spellings) -> Option<(String, &'a str)> {
        let find = |key: &&str| self.annotations[*key].as_str().map(|value| (format!("{}.{key}", self.path), value));
        spellings.iter().find_map(find)
    }

    fn number(&self, spellings: Spellings, errors: &mut Errors, check: impl FnOnce(f64, &str, String, &mut Errors)) {
        let Some((path, value)) = self.get(spellings) else { return };
        match value.parse() {
            Ok(number) => check(number, value, path, errors),
            Err(_) => errors.invalid(value, path),
        }
    }

    fn range(&self, spellings: Spellings, least: f64, most: f64, errors: &mut Errors) {
        self.number(spellings, errors, |number, value, path, errors| {
            if !(least..=most).contains(&number) {
                errors.out_of_bounds(value, least, most, path);
            }
        });
    }

    fn duration(&self, spellings: Spellings, least: (i64, &str), errors: &mut Errors) {
        let Some((path, value)) = self.get(spellings) else { return };
        match base::duration::parse_nanoseconds(value) {
            None => errors.invalid(value, path),
            Some(time) if time < least.0 || time > HOUR => errors.out_of_bounds(value, least.1, "1h0m0s", path),
            Some(time) if time % SECOND != 0 => errors.add("must be specified with at most second precision", path),
            Some(_) => {}
        }
    }

    /// A number of pods; 0 when it is absent or wrong.
    fn count(&self, spellings: Spellings, errors: &mut Errors) -> i64 {
        let Some((path, value)) = self.get(spellings) else { return 0 };
        match value.parse::<i64>() {
            Ok(count) if (0..=MOST).contains(&count) => return count,
            Ok(_) => errors.out_of_bounds(value, 0, MOST, path),
            Err(_) => errors.invalid(value, path),
        }
        0
    }
}

/// Checks the annotations of a Revision or its template.
pub(super) fn validate(annotations: &Value, path: &str, settings: &Settings, errors: &mut Errors) {
    if annotations.as_object().is_none_or(|map| map.is_empty()) {
        return;
    }
    let reader = Reader { annotations, path };
    class_and_metric(&reader, errors);
    reader.number(keys::TARGET, errors, |number, value, path, errors| {
        if number < 0.01 {
            errors.add(format!("target {value} should be at least 0.01"), path);
        }
    });
    reader.range(keys::TARGET_UTILIZATION_PERCENTAGE, 1.0, 100.0, errors);
    reader.range(keys::PANIC_WINDOW_PERCENTAGE, 1.0, 100.0, errors);
    reader.range(keys::PANIC_THRESHOLD_PERCENTAGE, 110.0, 1_000.0, errors);
    reader.number(keys::TARGET_BURST_CAPACITY, errors, |number, value, path, errors| {
        if number < 0.0 && number != -1.0 {
            errors.invalid(value, path);
        }
    });
    reader.duration(keys::WINDOW, (6 * SECOND, "6s"), errors);
    reader.duration(keys::SCALE_DOWN_DELAY, (0, "0s"), errors);
    reader.duration(keys::SCALE_TO_ZERO_POD_RETENTION_PERIOD, (0, "0s"), errors);
    scales(&reader, settings, errors);
}

fn class_and_metric(reader: &Reader<'_>, errors: &mut Errors) {
    let class = reader.get(keys::CLASS);
    if let Some((path, value)) = &class
        && value.ends_with(".knative.dev")
        && *value != CLASS_KPA
        && *value != CLASS_HPA
    {
        errors.invalid(value, path.clone());
    }
    let class = class.map_or(CLASS_KPA, |(_, value)| value);
    if let Some((path, metric)) = reader.get(keys::METRIC)
        && (class == CLASS_KPA || class.is_empty())
        && !["concurrency", "rps"].contains(&metric)
    {
        errors.invalid(metric, path);
    }
}

fn scales(reader: &Reader<'_>, settings: &Settings, errors: &mut Errors) {
    let min = reader.count(keys::MIN_SCALE, errors);
    let max = reader.count(keys::MAX_SCALE, errors);
    let path = |spellings: Spellings| reader.get(spellings).map(|(path, _)| path).unwrap_or_default();
    if max != 0 && max < min {
        let message = format!("max-scale={max} is less than min-scale={min}");
        errors.add(message.clone(), path(keys::MAX_SCALE));
        errors.add(message, path(keys::MIN_SCALE));
    }
    if settings.max_scale_limit > 0 && reader.get(keys::MAX_SCALE).is_some() {
        let limit = settings.max_scale_limit;
        if max == 0 {
            errors.add(format!("max-scale=0 (unlimited), must be less than {limit}"), path(keys::MAX_SCALE));
        } else if max > limit {
            errors.out_of_bounds(max, 1, limit, path(keys::MAX_SCALE));
        }
    }
    if let Some((path, value)) = reader.get(keys::INITIAL_SCALE) {
        match value.parse::<i64>() {
            Ok(count) if count < 0 => {
                errors.add(format!("invalid value: {value}"), format!("{path} must be greater than 0"))
            }
            Ok(0) if !settings.allow_zero_initial_scale => {
                errors.add("invalid value: 0", format!("{path}=0 not allowed by cluster"));
            }
            Ok(_) => {}
            Err(_) => errors.invalid(value, path),
        }
    }
    activation(reader, min, max, errors);
}

fn activation(reader: &Reader<'_>, min: i64, max: i64, errors: &mut Errors) {
    let Some((path, value)) = reader.get(keys::ACTIVATION_SCALE) else { return };
    match value.parse::<i64>() {
        Err(_) => errors.invalid(value, path),
        Ok(count) if count < min => {
            errors.add(format!("min-scale={min} is greater than activation-scale={count}"), path);
        }
        Ok(count) if count < 2 => errors.add(format!("activation-scale={count} must be greater than 1"), path),
        Ok(count) if max != 0 && count > max => {
            errors.add(format!("max-scale={max} is less than activation-scale={count}"), path);
        }
        Ok(_) => {}
    }
}
