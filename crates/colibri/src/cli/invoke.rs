//! `colibri invoke`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method};
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt;
use serde_json::Value;
use url::Url;

use super::access::{Access, Target};
use super::error::{CliError, causes, print, print_bytes};
use super::http::{self, Call};
use super::output::{Format, OutputArgs};
use super::workload::Workload;

/// How long a request may wait until it is said what for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `colibri invoke`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri invoke hello
  colibri invoke hello -d '{\"name\": \"you\"}'             POST, as JSON
  colibri invoke hello --event event.json              a CloudEvent
  colibri invoke hello --path '/a?b=c' -X PUT -H 'X-Test: 1'
  colibri invoke hello -q | jq .                       the body alone
  colibri invoke hello -o json | jq .coldStart")]
pub struct InvokeArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    /// Method [default: GET, with data POST]
    #[arg(long, short = 'X')]
    method: Option<String>,
    /// Header, as NAME: VALUE; may be given several times
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Body
    #[arg(long, short, conflicts_with = "data_file")]
    data: Option<String>,
    /// File with the body; - is standard input
    #[arg(long, value_name = "FILE")]
    data_file: Option<PathBuf>,
    /// File with a CloudEvent as JSON, which is sent as it is; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "data_file"])]
    event: Option<PathBuf>,
    /// Path and query
    #[arg(long, short, default_value = "/")]
    path: String,
    /// Print the answer's headers too
    #[arg(long, short)]
    include: bool,
    /// Print nothing but the answer's body
    #[arg(long, short)]
    quiet: bool,
    /// Longest wait for the answer, such as 30s
    #[arg(long, default_value = "10m", value_parser = super::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Calls a function or service and prints status, time, cold or warm, and the body.
pub async fn run(args: InvokeArgs) -> Result<(), CliError> {
    let call = request(&args)?;
    let access = args.target.open().await?;
    let workload = Workload::find(&access, &args.name).await?;
    let Some(url) = workload.url() else {
        let (_, reason) = workload.ready();
        let error = CliError::new(format!("{} has no URL yet ({reason})", args.name));
        return Err(error.cured_by(&why(&access, &args.name).await));
    };
    let place = place(url, access.gateway.as_deref())?;
    let started = Instant::now();
    let limit = args.timeout;
    let sent = http::call(&place.address, Call { host: place.host, ..call });
    let late = || {
        CliError::new(format!("{} gave no answer within {limit:?}", args.name))
            .cured_by(&format!("--timeout waits longer; colibri logs {} tells what it does", args.name))
    };
    let answer = tokio::select! {
        answer = tokio::time::timeout(limit, sent) => answer.map_err(|_| late())??,
        never = tell_why(&access, &args) => match never {},
    };
    let took = started.elapsed();
    let (status, headers) = (answer.status, answer.headers.clone());
    let timing = headers.get("server-timing").and_then(|value| value.to_str().ok());
    if args.output.output == Format::Table {
        if !args.quiet {
            print(&format!("{}\n", summary(status, took, timing)));
        }
        if args.include {
            for (name, value) in &headers {
                print(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
            }
            print("\n");
        }
        stream(answer, print_bytes).await?;
    } else {
        let mut body = Vec::new();
        stream(answer, |piece| body.extend_from_slice(piece)).await?;
        let value = value(status, &headers, took, timing, &body);
        let name = || format!("{}\n", workload.full_name());
        args.output.show(&value, name, String::new);
    }
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(());
    }
    if !args.quiet {
        eprintln!("cure: {}", cure(&access, &args.name, status).await);
    }
    Err(CliError { message: String::new(), code: 4 })
}

/// Says what a request waits for that gets no answer for a while, each time that it is something else.
async fn tell_why(access: &Access, args: &InvokeArgs) -> std::convert::Infallible {
    let mut told = None;
    loop {
        tokio::time::sleep(PATIENCE).await;
        let seen = super::seen::look(access, &args.name).await.ok();
        let advice = seen.as_ref().and_then(super::advice::of);
        if advice.is_some() && advice != told && !args.quiet {
            eprintln!("waiting at {}", advice.as_ref().map(ToString::to_string).unwrap_or_default());
        }
        told = advice;
    }
}

/// Hands over the body piece by piece.
async fn stream(mut answer: http::Answer, mut take: impl FnMut(&[u8])) -> Result<(), CliError> {
    while let Some(frame) = answer.body.frame().await {
        let frame = frame.map_err(|error| {
            let text = format!("the answer broke off: {}", causes(&error));
            CliError::new(text).cured_by("the program ended or ran into its timeout: colibri logs tells more")
        })?;
        if let Some(data) = frame.data_ref() {
            take(data);
        }
    }
    Ok(())
}

/// What is wrong with a workload, in one text.
async fn why(access: &Access, name: &str) -> String {
    let seen = super::seen::look(access, name).await.ok();
    let advice = seen.as_ref().and_then(super::advice::of);
    advice.map_or_else(|| format!("colibri describe {name} tells why"), |advice| advice.to_string())
}

/// What to do about an answer that is an error.
async fn cure(access: &Access, name: &str, status: ::http::StatusCode) -> String {
    use ::http::StatusCode as Code;
    match status {
        Code::GATEWAY_TIMEOUT => format!(
            "{}; a program that needs longer gets spec.timeout (a function) or timeoutSeconds (a service), at most 600s",
            why(access, name).await
        ),
        Code::BAD_GATEWAY | Code::SERVICE_UNAVAILABLE => why(access, name).await,
        status if status.is_server_error() => format!("look for the request in the log: colibri logs {name} --tail 50"),
        Code::NOT_FOUND => "the program has no such path; --path names another".to_owned(),
        _ => "the program refused the request: look at its method, headers and body".to_owned(),
    }
}

/// For programs. A body that is JSON is given as such.
fn value(status: ::http::StatusCode, headers: &HeaderMap, took: Duration, timing: Option<&str>, body: &[u8]) -> Value {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut all = serde_json::Map::new();
    for (name, value) in headers {
        let entry = all.entry(name.as_str()).or_insert_with(|| Value::Array(Vec::new()));
        if let Some(list) = entry.as_array_mut() {
            list.push(text(value).into());
        }
    }
    let timing = Timing::parse(timing.unwrap_or_default());
    serde_json::json!({
        "status": status.as_u16(),
        "milliseconds": took.as_secs_f64() * 1000.0,
        "coldStart": timing.cold,
        "stages": timing.stages.into_iter().collect::<serde_json::Map<_, _>>(),
        "headers": all,
        "body": serde_json::from_slice(body).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(body))),
    })
}

/// What `Server-Timing` says.
#[derive(Debug, Default)]
struct Timing {
    cold: bool,
    /// Name and milliseconds.
    stages: Vec<(String, Value)>,
}

impl Timing {
    fn parse(text: &str) -> Self {
        let mut timing = Self::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, rest) = entry.split_once(';').unwrap_or((entry, ""));
            timing.cold |= name == "cold";
            let duration = rest.split(';').find_map(|part| part.trim().strip_prefix("dur="));
            if let Some(milliseconds) = duration.and_then(|text| text.parse::<f64>().ok()) {
                timing.stages.push((name.to_owned(), milliseconds.into()));
            }
        }
        timing
    }
}

fn request(args: &InvokeArgs) -> Result<Call, CliError> {
    let body = match (&args.data, args.data_file.as_ref().or(args.event.as_ref())) {
        (Some(data), _) => Some(Bytes::from(data.clone().into_bytes())),
        (None, Some(file)) => Some(read(file)?),
        (None, None) => None,
    };
    if let (Some(file), Some(event)) = (&args.event, &body) {
        check_event(event).map_err(|why| CliError::new(format!("{} is not a CloudEvent: {why}", file.display())))?;
    }
    let default = if body.is_some() { "POST" } else { "GET" };
    let text = args.method.as_deref().unwrap_or(default);
    let method = Method::from_bytes(text.to_ascii_uppercase().as_bytes());
    let method = method.map_err(|_| CliError { message: format!("{text:?} is not a method"), code: 2 })?;
    let mut headers = HeaderMap::new();
    for (name, value) in &args.headers {
        headers.append(name, value.clone());
    }
    let body = body.unwrap_or_default();
    if !body.is_empty() && !headers.contains_key("content-type") {
        let content_type = if args.event.is_some() { "application/cloudevents+json" } else { guess(&body) };
        headers.insert("content-type", HeaderValue::from_static(content_type));
    }
    let path = if args.path.starts_with('/') { args.path.clone() } else { format!("/{}", args.path) };
    Ok(Call { method, host: String::new(), path, headers, body })
}

/// What every event must say; the rest is the function's to judge.
fn check_event(event: &[u8]) -> Result<(), String> {
    let event: Value = serde_json::from_slice(event).map_err(|error| format!("it is not JSON: {error}"))?;
    let missing = |name: &&str| event.get(name).and_then(Value::as_str).is_none_or(str::is_empty);
    match ["specversion", "type", "source", "id"].into_iter().find(missing) {
        Some(name) => Err(format!("it has no text {name:?}; colibri init --template cloudevent writes a sample")),
        None => Ok(()),
    }
}

/// JSON is sent as JSON.
fn guess(body: &[u8]) -> &'static str {
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Ok(_) => "application/json",
        Err(_) => "text/plain; charset=utf-8",
    }
}

fn read(file: &PathBuf) -> Result<Bytes, CliError> {
    let read = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes).map(|_| bytes)
    } else {
        std::fs::read(file)
    };
    read.map(Bytes::from).map_err(|error| CliError::new(format!("{} cannot be read: {error}", file.display())))
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as NAME: VALUE")?;
    let name = HeaderName::try_from(name.trim()).map_err(|error| error.to_string())?;
    let value = HeaderValue::try_from(value.trim()).map_err(|error| error.to_string())?;
    Ok((name, value))
}

/// Where to connect, and as which host.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    address: String,
    host: String,
}

/// The gateway's own address where it is known, so that no DNS is needed; else what the URL says.
fn place(url: &str, gateway: Option<&str>) -> Result<Place, CliError> {
    let unusable = || CliError::new(format!("the URL {url:?} cannot be used"));
    let parsed = Url::parse(url).map_err(|_| unusable())?;
    let host = parsed.host_str().ok_or_else(unusable)?.to_owned();
    let port = parsed.port_or_known_default().unwrap_or(80);
    let own = gateway.and_then(|gateway| Url::parse(gateway).ok());
    let own = own.and_then(|own| Some(format!("{}:{}", own.host_str()?, own.port_or_known_default()?)));
    // RFC 6761, section 6.3: names below localhost mean this machine.
    let name = if host == "localhost" || host.ends_with(".localhost") { "127.0.0.1" } else { &host };
    let address = own.unwrap_or_else(|| format!("{name}:{port}"));
    let host = parsed.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    Ok(Place { address, host })
}

/// A curl command that works as it stands: curl itself resolves names below localhost.
pub fn curl_line(url: &str, gateway: Option<&str>) -> String {
    let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    match gateway {
        Some(gateway) if host != "localhost" && !host.ends_with(".localhost") && !host.is_empty() => {
            format!("curl -H 'Host: {host}' {}/", gateway.trim_end_matches('/'))
        }
        _ => format!("curl {}/", url.trim_end_matches('/')),
    }
}

/// `200 OK in 41.2 ms, cold (schedule 1.0 ms, start 12.1 ms, probe 20.3 ms, app 2.0 ms)`.
fn summary(status: ::http::StatusCode, took: Duration, timing: Option<&str>) -> String {
    let reason = status.canonical_reason().unwrap_or_default();
    let took = format!("{} {reason} in {:.1} ms", status.as_u16(), took.as_secs_f64() * 1000.0);
    let Some(timing) = timing.map(Timing::parse) else { return took };
    if !timing.cold {
        return format!("{took}, warm");
    }
    let shown = timing.stages.iter().filter(|(name, _)| ["schedule", "start", "probe", "app"].contains(&name.as_str()));
    let stages: Vec<String> =
        shown.map(|(name, time)| format!("{name} {:.1} ms", time.as_f64().unwrap_or_default())).collect();
    if stages.is_empty() { format!("{took}, cold") } else { format!("{took}, cold ({})", stages.join(", ")) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: InvokeArgs,
    }

    fn parse(words: &[&str]) -> Call {
        let line = Line::try_parse_from(["invoke", "name"].iter().chain(words)).unwrap();
        request(&line.args).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    #[test]
    fn the_request_is_what_the_flags_say() {
        let call = parse(&[]);
        assert_eq!((call.method, call.path.as_str(), call.body.len()), (Method::GET, "/", 0));
        let call = parse(&["-d", "{\"a\": 1}"]);
        assert_eq!((call.method, call.headers["content-type"].to_str().unwrap()), (Method::POST, "application/json"));
        let call = parse(&["-d", "text", "-X", "put", "-H", "X-A: 1", "-H", "x-a:2", "--path", "b?c=d"]);
        assert_eq!((call.method, call.path.as_str()), (Method::PUT, "/b?c=d"));
        assert_eq!(call.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(call.headers["content-type"], "text/plain; charset=utf-8");
    }

    #[test]
    fn an_event_is_sent_as_it_is_and_another_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let send = |text: &str| {
            let file = dir.path().join("event.json");
            std::fs::write(&file, text).unwrap();
            let line = Line::try_parse_from(["invoke", "name", "--event", file.to_str().unwrap()]).unwrap();
            request(&line.args)
        };
        let event = r#"{"specversion": "1.0", "type": "a", "source": "/b", "id": "1"}"#;
        let call = send(event).unwrap();
        assert_eq!((call.method, call.body), (Method::POST, Bytes::from(event)));
        assert_eq!(call.headers["content-type"], "application/cloudevents+json");
        for (text, expected) in
            [("a", "it is not JSON"), ("{}", "it has no text \"specversion\""), ("[]", "it has no text")]
        {
            let error = send(text).err().unwrap();
            assert!(error.message.contains(expected), "{error}");
        }
    }

    #[test]
    fn wrong_flags_are_refused() {
        for words in [vec!["-H", "no colon"], vec!["-H", "a b: c"], vec!["-d", "a", "--data-file", "b"]] {
            assert!(Line::try_parse_from(["invoke", "name"].iter().chain(&words)).is_err(), "{words:?}");
        }
    }

    #[test]
    fn no_name_has_to_be_resolved() {
        let rows = [
            ("http://a.b.localhost:8080", Some("http://127.0.0.1:18080"), "127.0.0.1:18080", "a.b.localhost:8080"),
            ("http://a.b.localhost:8080", None, "127.0.0.1:8080", "a.b.localhost:8080"),
            ("http://a.b.example.com", None, "a.b.example.com:80", "a.b.example.com"),
        ];
        for (url, gateway, address, host) in rows {
            let expected = Place { address: address.to_owned(), host: host.to_owned() };
            assert_eq!(place(url, gateway).unwrap(), expected, "{url}");
        }
        assert!(place("no url", None).is_err());
    }

    #[test]
    fn the_curl_line_works_without_dns() {
        let gateway = Some("http://127.0.0.1:8080");
        assert_eq!(curl_line("http://a.b.localhost:8080", gateway), "curl http://a.b.localhost:8080/");
        assert_eq!(curl_line("http://a.b.my.org", gateway), "curl -H 'Host: a.b.my.org' http://127.0.0.1:8080/");
    }

    #[test]
    fn programs_get_everything() {
        let headers = HeaderMap::from_iter([(::http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
        let shown = |body: &[u8]| {
            let timing = Some("route;dur=0.5, cold, app;dur=3");
            value(::http::StatusCode::OK, &headers, Duration::from_millis(7), timing, body)
        };
        expect_test::expect![[r#"{"body":{"a":1},"coldStart":true,"headers":{"content-type":["text/plain"]},"milliseconds":7.0,"stages":{"app":3.0,"route":0.5},"status":200}"#]]
            .assert_eq(&shown(b"{\"a\": 1}").to_string());
        assert_eq!(shown(b"text")["body"], "text");
    }

    #[test]
    fn the_summary_tells_cold_from_warm() {
        let took = Duration::from_micros(41_230);
        let ok = ::http::StatusCode::OK;
        let rows = [
            (None, "200 OK in 41.2 ms"),
            (Some("route;dur=0.1, queue;dur=0.2, app;dur=3.0"), "200 OK in 41.2 ms, warm"),
            (
                Some("route;dur=0, queue;dur=42, cold, schedule;dur=2.04, start;dur=18, probe;dur=21, app;dur=8"),
                "200 OK in 41.2 ms, cold (schedule 2.0 ms, start 18.0 ms, probe 21.0 ms, app 8.0 ms)",
            ),
            (Some("cold"), "200 OK in 41.2 ms, cold"),
        ];
        for (timing, expected) in rows {
            assert_eq!(summary(ok, took, timing), expected);
        }
    }
}
