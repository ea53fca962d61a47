//! The page `docs/benchmarks.md`, made from a report.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Report;
use super::stats::Summary;

/// What the figures were taken on.
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: Option<u64> = kib.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok());
    let system = read("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memoryGiB": kib.map_or(0, |kib| kib.div_ceil(1024 * 1024)),
        "kernel": read("/proc/sys/kernel/osrelease").trim().split('.').take(2).collect::<Vec<_>>().join("."),
        "system": system.unwrap_or_default().trim_matches('"'),
    })
}

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut page = head();
    cold_starts(report, &mut page);
    bursts(report, &mut page);
    gateway(report, &mut page);
    idle(report, &mut page);
    control_plane(report, &mut page);
    scale(report, &mut page);
    page.push_str(TAIL);
    page
}

fn head() -> String {
    let machine = machine();
    let text = |key: &str| machine[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| machine[key].as_u64().unwrap_or_default();
    let build = if cfg!(debug_assertions) { "with debug assertions (not a release build)" } else { "in release" };
    format!(
        "# Benchmarks\n\nThis page is made by `make bench`, which starts a fresh platform and runs `colibri bench --markdown`; nothing here is\nwritten by hand. The machine: {} cores, {} GiB, Linux {}, {}; the binary was built\n{build}. The machine is shared and noisy: read medians and ratios.\n\n*Bar* is the first target of the design.\n",
        number("cores"),
        number("memoryGiB"),
        text("kernel"),
        text("system"),
    )
}

fn pair(summary: &Option<Summary>) -> String {
    summary.as_ref().map_or_else(|| "-".to_owned(), Summary::short)
}

fn cold_starts(report: &Report, page: &mut String) {
    if report.coldstart.is_empty() {
        return;
    }
    let count = report.coldstart.first().and_then(|one| one.cold.map(|cold| cold.count)).unwrap_or_default();
    page.push_str(&format!(
        "\n## Cold start\n\n`colibri bench coldstart`: {count} services of each kind at zero, each called once. From before the client's\nconnection to the first byte of the response, p50 / p99; beside it the same program started as a plain process on this\nmachine, from its start to its first answer, in the same run.\n\n| | cold | bar | plain process | second request |\n|---|---|---|---|---|\n"
    ));
    for one in &report.coldstart {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} |",
            one.workload.title(),
            pair(&one.cold),
            one.workload.bar(),
            pair(&one.bare),
            pair(&one.warm)
        );
    }
    page.push_str("\nStages, as the gateway's `Server-Timing` header names them, p50 / p99:\n\n| stage |");
    for one in &report.coldstart {
        let _ = write!(page, " {} |", one.workload.title());
    }
    page.push_str(" what it is |\n|---|");
    page.push_str(&"---|".repeat(report.coldstart.len()));
    page.push_str("---|\n");
    for (stage, meaning) in STAGES {
        let cells: Vec<String> =
            report.coldstart.iter().map(|one| one.stages.get(stage).map_or_else(|| "-".to_owned(), pair)).collect();
        if cells.iter().any(|cell| cell != "-") {
            let _ = writeln!(page, "| {stage} | {} | {meaning} |", cells.join(" | "));
        }
    }
}

const STAGES: [(&str, &str); 5] = [
    ("schedule", "from the first request until the pod has an address"),
    ("start", "from the address until something listens there"),
    ("probe", "from then until a probe succeeds"),
    ("queue", "the wait of this request, all stages together"),
    ("app", "the request itself"),
];

fn bursts(report: &Report, page: &mut String) {
    for one in &report.burst {
        let _ = write!(
            page,
            "\n## {} services from zero at once\n\n`colibri bench burst`: {} services at zero ({}), {} request(s) to each at the same moment.\n\n| p50 / p99 | the last answer | failed | bar |\n|---|---|---|---|\n| {} | {:.0} ms | {} | p99 <= 2 s, none failed |\n",
            one.services,
            one.services,
            one.workload.title(),
            one.requests_each,
            pair(&one.cold),
            one.all_ms,
            one.failed
        );
    }
}

fn gateway(report: &Report, page: &mut String) {
    let Some(gateway) = &report.gateway else { return };
    let _ = write!(
        page,
        "\n## The gateway\n\n`colibri bench gateway`: ours, nginx and haproxy (two workers each, kept connections) in front of the same instances,\nin turn; medians of {} rounds of {} s. *Added* is the time at half of what the slowest can do less that of requests\nstraight to the instance. *CPU* is that of the proxy's processes; ours is the whole platform. Bar: 0.6 of nginx, then 0.9;\ntwice nginx's latency, then 1.2 times and 300 us.\n\n| | | requests/s | of nginx | CPU for each | added p50 | added p99 |\n|---|---|---|---|---|---|---|\n",
        gateway.rounds, gateway.seconds
    );
    for measured in &gateway.loads {
        for (number, one) in measured.proxies.iter().enumerate() {
            let added = |figure: fn(&Summary) -> f64| {
                one.added(&measured.direct, figure).map_or_else(|| "-".to_owned(), |added| format!("{added:.0} us"))
            };
            let _ = writeln!(
                page,
                "| {} | {} | {:.0} | {:.2} | {:.1} us | {} | {} |",
                if number == 0 { measured.load.title() } else { "" },
                one.proxy,
                one.median_per_second(),
                one.ratio,
                one.cpu_us,
                added(|summary| summary.p50_ms),
                added(|summary| summary.p99_ms)
            );
        }
    }
    page.push_str("\n| connections | | memory for them | each |\n|---|---|---|---|\n");
    let waiting = [("with a request that waits for an instance", &gateway.waiting)];
    for (what, memory) in gateway.sockets.iter().map(|memory| ("idle WebSockets", memory)).chain(waiting) {
        let _ = writeln!(
            page,
            "| {} {what} | {} | {:.0} MiB | {:.1} KiB |",
            memory.connections,
            memory.proxy,
            memory.with_mib - memory.before_mib,
            memory.each_kib()
        );
    }
    let overload = &gateway.overload;
    let statuses: Vec<String> =
        overload.statuses.iter().map(|(status, count)| format!("{count} with {status}")).collect();
    let _ = write!(
        page,
        "\nOverload: {:.0} requests/s for {} s to an instance that can answer {:.0}/s, in slots of its own: {:.0}/s were answered\nwith 200, {:.0} % of what it can do (bar: 90 %). In all: {}.\n",
        overload.offered_per_second,
        overload.seconds,
        overload.peak_per_second,
        overload.goodput_per_second,
        overload.share() * 100.0,
        statuses.join(", ")
    );
    page.push_str(include_str!("profile.md"));
}

fn idle(report: &Report, page: &mut String) {
    if report.idle.is_empty() {
        return;
    }
    page.push_str("\n## At rest\n\n`colibri bench idle`, on a fresh platform; the whole platform is one process.\n\n| services at zero | resident memory | CPU | bar |\n|---|---|---|---|\n");
    for one in &report.idle {
        let bar = if one.services == 0 { "80 MB, 1 % of a core" } else { "1,000 services: + 100 MB" };
        let _ = writeln!(
            page,
            "| {} | {:.1} MiB | {:.2} % of a core | {bar} |",
            one.services, one.rss_mib, one.cpu_percent
        );
    }
}

fn control_plane(report: &Report, page: &mut String) {
    let Some(plane) = &report.control_plane else { return };
    let _ = write!(
        page,
        "\n## Control plane\n\n`colibri bench control-plane`. Each write is on disk before it is acknowledged, and goes over TLS.\n\n| | figure | bar |\n|---|---|---|\n| durable creates of 1 KiB, {} writers | {:.0}/s, p50 / p99 {} | 3,000/s |\n| {} services created at once, creation to Ready with their first pods | {:.1}/s, p50 / p99 {} | |\n| CPU of the platform for each of them | {:.1} ms | |\n| all of them deleted until no Revision and no pod is left | {:.0} ms | |\n",
        plane.writers,
        plane.creates_per_second,
        pair(&plane.create),
        plane.services,
        plane.ready_per_second,
        pair(&plane.ready),
        plane.cpu_ms_per_service,
        plane.gone_ms
    );
}

fn scale(report: &Report, page: &mut String) {
    if report.scale.is_empty() {
        return;
    }
    page.push_str("\n## Many services\n\n`colibri bench scale`: the API server with its store on disk, the controllers and the gateway in one process with their\nclients; the pods alone are simulated: one listens 5 ms after it has an address. *Writes* are durable ones. Bar: 1,000\nstarts/s with 5,000 services, and the same time from zero however many there are.\n\n| services | created to Ready | p50 / p95 / p99 | CPU, writes each | one from zero, p50 / p95 / p99 | all from zero | p50 / p95 / p99 | CPU, writes each | at rest |\n|---|---|---|---|---|---|---|---|---|\n");
    let short = |summary: &Option<Summary>| summary.as_ref().map_or_else(|| "-".to_owned(), Summary::percentiles);
    for row in &report.scale {
        let _ = writeln!(
            page,
            "| {} | {:.0}/s | {} | {:.2} ms, {:.1} | {} | {:.0}/s | {} | {:.2} ms, {:.1} | {:.0} MiB, {:.2} % of a core |",
            row.services,
            row.created_per_second,
            short(&row.ready),
            row.cpu_ms_per_creation,
            row.writes_per_creation,
            short(&row.cold),
            row.starts_per_second,
            short(&row.start),
            row.cpu_ms_per_start,
            row.writes_per_start,
            row.rss_mib,
            row.idle_cpu_percent
        );
    }
}

const TAIL: &str = "
## Scale to zero

With the defaults the last pod goes 90 s after the last request (stable window 60 s, grace period 30 s), to within 3 s:
the end-to-end test `with_the_defaults_the_last_pod_goes_after_90_seconds`.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::memory::Idle;

    #[test]
    fn a_page_has_the_parts_that_were_measured() {
        let idle = Idle { services: 0, rss_mib: 50.0, rss_before_mib: 50.0, cpu_percent: 0.5, threads: 9 };
        let page = page(&Report { idle: vec![idle], ..Report::default() });
        assert!(page.contains("## At rest") && page.contains("| 0 | 50.0 MiB | 0.50 % of a core |"), "{page}");
        assert!(!page.contains("## Cold start") && !page.contains("## Control plane"), "{page}");
    }

    #[test]
    fn the_machine_is_named() {
        let machine = machine();
        assert!(machine["cores"].as_u64() > Some(0) && machine["memoryGiB"].as_u64() > Some(0), "{machine}");
        assert!(!machine["kernel"].as_str().unwrap_or_default().is_empty(), "{machine}");
    }
}
