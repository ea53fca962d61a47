//! What people do wrong, and what they are told: the field or stage, the cause and the cure, in the output of the
//! command that they would run. One platform for all rows; rows run beside each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Layout, Options, Output, Platform, cannot_run, layout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Rows that run at once.
const ABREAST: usize = 6;
/// How long it may take until `describe` knows what is wrong, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done wrong.
enum Act {
    /// A command of the CLI; `{dir}` is the row's own folder, `{registry}` the address of a registry.
    Run(Vec<String>),
    /// `colibri deploy` of a folder with these files.
    Deploy(Vec<(&'static str, String)>),
    /// `colibri deploy -f` of this file, to its failure.
    File(String),
    /// The same without waiting; then `colibri describe` until it tells.
    Describe(String),
    /// `kubectl apply` of this file.
    Kubectl(String),
}

/// One mistake.
struct Row {
    name: &'static str,
    act: Act,
    /// Exit code.
    code: i32,
    /// Field or stage, cause and cure: each is in the output.
    says: [&'static str; 3],
    /// Files of the row's folder that the act does not write itself.
    files: Vec<(&'static str, Vec<u8>)>,
}

fn row(name: &'static str, act: Act, code: i32, says: [&'static str; 3]) -> Row {
    Row { name, act, code, says, files: Vec::new() }
}

fn run(line: &str) -> Act {
    Act::Run(line.split(' ').map(str::to_owned).collect())
}

/// A function in Python: its `spec`, and `main.py`.
fn function(spec: &str, code: &str) -> Act {
    let mut files = vec![("function.yml", format!("spec: {{ {spec} }}\n"))];
    if !code.is_empty() {
        files.push(("main.py", code.to_owned()));
    }
    Act::Deploy(files)
}

const GOOD: &str = "def handle(request):\n    return 'ok'\n";

/// A Knative Service of one container.
fn service(name: &str, metadata: &str, spec: &str, container: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec:\n  template:\n    metadata: {{ {metadata} }}\n    spec:\n      {spec}\n      containers:\n      - {{ {container} }}\n"
    )
}

/// One that runs a shell's line on the host's own root, or a line of Python.
fn shell(name: &str, line: &str) -> String {
    service(
        name,
        "",
        "timeoutSeconds: 10",
        &format!("image: runtime.colibri.local/binary, command: [/bin/sh, -c, {line:?}]"),
    )
}

fn python(name: &str, line: &str) -> String {
    service(
        name,
        "",
        "timeoutSeconds: 10",
        &format!("image: runtime.colibri.local/python, command: [python3, -c, {line:?}]"),
    )
}

/// Serves HTTP there: what the mistake is about is the address.
fn listen(host: &str, port: u16) -> String {
    format!("import http.server as h; h.HTTPServer(('{host}', {port}), h.SimpleHTTPRequestHandler).serve_forever()")
}

/// The command line itself, and how the platform is found.
fn commands() -> Vec<Row> {
    vec![
        row(
            "unknown-command",
            run("depoly"),
            2,
            ["depoly", "unrecognized subcommand", "similar subcommand exists: 'deploy'"],
        ),
        row(
            "unknown-flag",
            run("deploy --nmae x"),
            2,
            ["--nmae", "unexpected argument", "similar argument exists: '--name'"],
        ),
        row(
            "unknown-format",
            run("list -o jsn"),
            2,
            ["--output", "invalid value 'jsn'", "similar value exists: 'json'"],
        ),
        row(
            "bad-duration",
            run("logs web --since 5x"),
            2,
            ["--since", "\"5x\" is not a duration", "such as 250ms, 30s"],
        ),
        row("bad-header", run("invoke web -H nocolon"), 2, ["--header", "nocolon", "write it as NAME: VALUE"]),
        row(
            "no-kubeconfig",
            run("list --kubeconfig {dir}/none"),
            3,
            ["none is not there", "no platform found", "sudo colibri up"],
        ),
        row(
            "wrong-context",
            run("list --kubeconfig {admin} --context colibir"),
            1,
            ["kubeconfig", "no context \"colibir\"", "did you mean colibri?"],
        ),
        Row {
            files: vec![("broken", b"apiVersion: v1\nclusters: [".to_vec())],
            ..row(
                "broken-kubeconfig",
                run("list --kubeconfig {dir}/broken"),
                1,
                ["broken", "cannot be read", "Correct it, or name another"],
            )
        },
        row(
            "no-api",
            run("list --kubeconfig {dead}"),
            3,
            ["list functions", "does not answer", "Start it with: sudo colibri up"],
        ),
        row("no-rights", run("list --kubeconfig {nobody}"), 1, ["functions", "forbidden", "bind a role"]),
        row(
            "no-such-workload",
            run("describe mistakn"),
            1,
            ["mistakn in namespace default", "there is no function or service", "did you mean mistaken?"],
        ),
        row(
            "no-such-namespace",
            run("invoke mistaken -n defalt"),
            1,
            ["namespace defalt", "there is no", "did you mean default?"],
        ),
        row(
            "no-such-version",
            run("logs mistaken --version mistaken-00009"),
            1,
            ["mistaken-00009", "there is no version", "mistaken-00001"],
        ),
        row(
            "port-taken",
            run("up --data-dir {dir}/data --api-port 0 --gateway-port {taken} --gateway-tls-port 0 --metrics-port 0"),
            1,
            ["port", "is taken by", "--gateway-port"],
        ),
        row(
            "second-platform",
            run("up --data-dir {node} --api-port 0 --gateway-port 0 --gateway-tls-port 0 --metrics-port 0"),
            1,
            ["data directory", "another colibri", "--data-dir"],
        ),
    ]
}

/// `function.yml` and what lies beside it.
fn manifests() -> Vec<Row> {
    let spec = |name, spec: &str, says| row(name, function(spec, GOOD), 1, says);
    vec![
        row(
            "no-folder",
            run("deploy {dir}/nowhere"),
            1,
            ["nowhere", "there is no folder", "name the one with function.yml"],
        ),
        row("a-file-for-a-folder", run("deploy {admin}"), 1, ["kubeconfig", "is a file, not a folder", "-f"]),
        Row {
            files: vec![("main.py", GOOD.into())],
            ..row("no-function-yml", run("deploy {dir}"), 1, ["{dir}", "has no function.yml", "kind: Function"])
        },
        row("no-code", function("runtime: python", ""), 1, ["{dir}", "no code beside function.yml", "write main.py"]),
        row(
            "no-yaml",
            Act::Deploy(vec![("function.yml", "spec: {runtime: python".into())]),
            1,
            ["function.yml", "not valid YAML", "Look at the indentation"],
        ),
        spec("field-typo", "runtme: python", ["spec.runtme", "unknown field", "did you mean runtime?"]),
        spec(
            "field-typo-below",
            "runtime: python, scaling: { maximum: 3 }",
            ["spec.scaling.maximum", "unknown field", "did you mean max?"],
        ),
        spec(
            "field-misplaced",
            "runtime: python, idle: 30s",
            ["spec.idle", "unknown field", "belongs in spec.scaling.idle"],
        ),
        spec(
            "wrong-type",
            "runtime: python, env: [{ name: A, value: 1 }]",
            ["spec.env[0].value", "must be a text", "put it in quotes"],
        ),
        spec(
            "negative",
            "runtime: python, scaling: { concurrency: -1 }",
            ["spec.scaling.concurrency", "-1 is less than 0", "the least there is"],
        ),
        spec(
            "unknown-runtime",
            "runtime: pyton",
            ["spec.runtime", "unknown runtime \"pyton\"", "did you mean python?"],
        ),
        spec("runtime-to-come", "runtime: wasm", ["spec.runtime", "wasm is not there yet", "use one of python"]),
        spec(
            "bad-handler",
            "runtime: python, handler: main",
            ["spec.handler", "not of the form module.function", "write main.handle"],
        ),
        spec(
            "min-over-max",
            "runtime: python, scaling: { min: 3, max: 2 }",
            ["spec.scaling.min", "3 is more than", "lower one or raise the other"],
        ),
        spec(
            "timeout-too-long",
            "runtime: python, timeout: 20m",
            ["spec.timeout", "longer than 600s", "the most there is"],
        ),
        spec("no-unit", "runtime: python, timeout: '60'", ["spec.timeout", "not a duration", "with its unit"]),
        spec(
            "bad-quantity",
            "runtime: python, resources: { limits: { memory: 64MB } }",
            ["spec.resources.limits.memory", "not a quantity", "like 64Mi"],
        ),
        spec(
            "reserved-env",
            "runtime: python, env: [{ name: PORT, value: '1' }]",
            ["spec.env[0].name", "PORT is set by the platform", "choose another name"],
        ),
        spec(
            "bad-signature",
            "runtime: python, signature: soap",
            ["spec.signature", "unknown signature", "use one of auto"],
        ),
        row(
            "bad-name",
            Act::Deploy(vec![
                ("function.yml", "metadata: { name: My_Func }\nspec: { runtime: python }\n".into()),
                ("main.py", GOOD.into()),
            ]),
            1,
            ["metadata.name", "My_Func", "lower-case letters"],
        ),
        row(
            "deploy-to-no-namespace",
            run("deploy {good} -n nowhere"),
            1,
            ["namespaces \"nowhere\"", "not found", "kubectl create namespace nowhere"],
        ),
        row(
            "name-taken",
            run("deploy {good} --name mistaken-service"),
            1,
            ["route", "does not belong to this function", "choose another name"],
        ),
    ]
}

/// Python code that does not load.
fn codes() -> Vec<Row> {
    let code = |name, code: &str, says| row(name, function("runtime: python", code), 1, says);
    vec![
        code("syntax-error", "def handle(request:\n    return 1\n", ["main.py:1", "SyntaxError", "correct the code"]),
        code(
            "missing-module",
            "import flask\n",
            ["main.py:1", "No module named 'flask'", "pip install --target . flask"],
        ),
        code(
            "missing-handler",
            "def handler(request):\n    return 1\n",
            ["main.py", "has no handle", "it defines: handler"],
        ),
        code("fails-while-loading", "1 / 0\n", ["main.py:1", "ZeroDivisionError", "correct the code"]),
        code("read-only", "open('/code/x', 'w')\n", ["main.py:1", "Read-only file system", "write to /tmp"]),
        row(
            "missing-file",
            function("runtime: python, handler: app.handle", GOOD),
            1,
            ["handler app.handle", "needs app.py", "it has: main.py"],
        ),
        row(
            "missing-secret",
            function("runtime: python, envFrom: [{ secretRef: { name: s3 } }]", GOOD),
            1,
            ["container", "Secret \"s3\" not found", "kubectl create secret generic s3"],
        ),
    ]
}

/// Knative Services that are not admitted.
fn services() -> Vec<Row> {
    let file = |name, text: String, says| row(name, Act::File(text), 1, says);
    let hello = "image: hello:latest";
    vec![
        file(
            "service-typo",
            service("s1", "", "contaners: []", hello),
            ["spec.template.spec.contaners", "unknown field", "did you mean containers?"],
        ),
        file(
            "container-typo",
            service("s2", "", "", "imgae: hello:latest"),
            ["containers[0].imgae", "unknown field", "did you mean image?"],
        ),
        file(
            "wrong-kind",
            "apiVersion: serving.knative.dev/v1\nkind: Servce\n".into(),
            ["holds a Servce", "not a Function", "did you mean Service"],
        ),
        file(
            "no-image",
            service("s3", "", "", "name: web"),
            ["containers[0].image", "missing field", "cure: add the field"],
        ),
        file(
            "bad-annotation",
            service("s4", "annotations: { autoscaling.knative.dev/min-scale: many }", "", hello),
            ["autoscaling.knative.dev/min-scale", "invalid value: many", "cure: look at the value"],
        ),
        file(
            "bad-window",
            service("s5", "annotations: { autoscaling.knative.dev/window: 2s }", "", hello),
            ["autoscaling.knative.dev/window", "expected 6s <= 2s", "cure: choose a value in that range"],
        ),
        file(
            "annotation-misplaced",
            service("s6", "", "", hello)
                .replace("name: s6 }", "name: s6, annotations: { autoscaling.knative.dev/min-scale: '1' } }"),
            ["metadata.annotations", "invalid key name", "cure: move the annotation"],
        ),
        file(
            "negative-concurrency",
            service("s7", "", "containerConcurrency: -1", hello),
            ["spec.template.spec.containerConcurrency", "expected 0 <= -1", "cure: choose a value"],
        ),
        file(
            "timeout-over-limit",
            service("s8", "", "timeoutSeconds: 3600", hello),
            ["spec.template.spec.timeoutSeconds", "expected 0 <= 3600 <= 600", "cure: choose a value"],
        ),
        file(
            "two-ports",
            service("s9", "", "", "image: 'hello:latest', ports: [{ containerPort: 80 }, { containerPort: 81 }]"),
            ["containers[*].ports", "more than one container port", "cure: keep one port"],
        ),
        file(
            "privileged",
            service("s10", "", "", "image: 'hello:latest', securityContext: { privileged: true }"),
            ["securityContext.privileged", "must not set", "cure: remove the field"],
        ),
        file(
            "host-network",
            service("s11", "", "hostNetwork: true", hello),
            ["spec.template.spec.hostNetwork", "must not set", "cure: remove the field"],
        ),
        file(
            "service-quantity",
            service("s12", "", "", "image: 'hello:latest', resources: { limits: { memory: lots } }"),
            ["containers[0].resources.limits.memory", "\"lots\" is not a quantity", "write it like 64Mi"],
        ),
        file("service-name", service("My-Web", "", "", hello), ["metadata.name", "My-Web", "cure: use lower-case"]),
        file(
            "traffic-sum",
            format!("{}  traffic: [{{ latestRevision: true, percent: 90 }}]\n", service("s13", "", "", hello)),
            ["spec.traffic", "sum to 90", "cure: let the percent"],
        ),
        row(
            "kubectl-function",
            Act::Kubectl("apiVersion: functions.colibri.dev/v1\nkind: Function\nmetadata: { name: f1 }\nspec: { runtime: python, scaling: { maximum: 3 }, source: { inline: { main.py: x } } }\n".into()),
            1,
            ["spec.scaling.maximum", "unknown field", "did you mean max?"],
        ),
        row(
            "kubectl-container-field",
            Act::Kubectl(service("s15", "", "", "image: 'hello:latest', prot: [{ containerPort: 80 }]")),
            1,
            [strict(), "unknown field", "prot\""],
        ),
        row(
            "kubectl-deep-field",
            Act::Kubectl(service("s16", "", "", "image: 'hello:latest', readinessProbe: { httpGet: { paht: / } }")),
            1,
            [strict(), "unknown field", "paht\""],
        ),
        row(
            "kubectl-says-it-too",
            Act::Kubectl(service("s14", "", "containerConcurrency: 5000", hello)),
            1,
            ["spec.template.spec.containerConcurrency", "expected 0 <= 5000", "<= 1000"],
        ),
    ]
}

/// Containers that do not become ready.
fn containers() -> Vec<Row> {
    let file = |name, text: String, says| row(name, Act::File(text), 1, says);
    let describe = |name, text: String, says| row(name, Act::Describe(text), 0, says);
    let image = |name: &str, image: &str| service(name, "", "", &format!("image: '{image}'"));
    vec![
        file(
            "registry-down",
            image("registry-down", "127.0.0.1:1/team/web:v1"),
            ["at image", "127.0.0.1:1/team/web:v1", "reaches the registry"],
        ),
        file(
            "image-missing",
            image("image-missing", "{registry}/team/missing:v1"),
            ["at image", "team/missing:v1", "look at the spelling and the tag"],
        ),
        file(
            "image-private",
            image("image-private", "{registry}/team/private:v1"),
            ["at image", "team/private:v1", "imagePullSecrets"],
        ),
        file(
            "other-platform",
            image("other-platform", "{registry}/team/foreign:v1"),
            ["at image", "has nothing for linux/{processor}; it is made for linux/s390x", "docker build --platform"],
        ),
        row(
            "no-interpreter",
            Act::Deploy(vec![
                ("function.yml", "spec: { runtime: nodejs }\n".into()),
                ("main.js", "exports.handle = () => 'ok';\n".into()),
            ]),
            1,
            ["at container", "the interpreter node is not installed on this machine", "apt-get install nodejs"],
        ),
        file("image-name", image("image-name", "Hello World"), ["image", "Hello World", "lower case"]),
        file(
            "wrong-processor",
            image("wrong-processor", "foreign:latest"),
            ["at container", "exec format error", "for this machine's processor"],
        ),
        file(
            "no-such-command",
            service("no-such-command", "", "", "image: 'hello:latest', command: [serve]"),
            ["at container", "\"serve\": executable file not found", "command and args"],
        ),
        file(
            "not-executable",
            service("not-executable", "", "", "image: 'unready:latest', command: [/web]"),
            ["at container", "permission denied", "chmod +x"],
        ),
        file(
            "no-such-file",
            service("no-such-file", "", "", "image: 'hello:latest', command: [/bin/web]"),
            ["at container", "no such file or directory", "command"],
        ),
        file(
            "crash",
            shell("crash", "echo config.ini is missing >&2; exit 3"),
            ["at container", "exit code 3: config.ini is missing", "colibri logs crash --previous"],
        ),
        file("ends", shell("ends", "echo done"), ["at container", "exit code 0", "go on listening"]),
        file(
            "out-of-memory",
            service(
                "out-of-memory",
                "",
                "",
                "image: runtime.colibri.local/python, command: [python3, -c, 'x = bytearray(300 << 20)'], resources: { limits: { memory: 48Mi } }",
            ),
            ["at container", "OOMKilled", "raise resources.limits.memory (now 48Mi)"],
        ),
        file(
            "address-in-use",
            python(
                "address-in-use",
                "import socket as s; a = s.create_server(('', 9000)); b = s.create_server(('', 9000))",
            ),
            ["at container", "already in use", "one program listen"],
        ),
        file(
            "missing-key",
            service(
                "missing-key",
                "",
                "",
                "image: 'hello:latest', env: [{ name: A, valueFrom: { configMapKeyRef: { name: kube-root-ca.crt, key: nope } } }]",
            ),
            ["at container", "nope", "add the key"],
        ),
        describe(
            "not-listening",
            shell("not-listening", "sleep 600"),
            ["probe", "nothing listens on port 8080", "the port in $PORT"],
        ),
        describe(
            "wrong-port",
            python("wrong-port", &listen("0.0.0.0", 3000)),
            ["probe", "something does on 3000", "containerPort: 3000"],
        ),
        describe(
            "localhost-only",
            python("localhost-only", &listen("127.0.0.1", 8080)),
            ["probe", "listens on 127.0.0.1:8080 only", "let it listen on 0.0.0.0:8080"],
        ),
        describe(
            "probe-path",
            service("probe-path", "", "", "image: 'hello:latest', readinessProbe: { httpGet: { path: /nope } }"),
            ["probe", "GET /nope on port 8080 was answered with 404", "correct the probe's path"],
        ),
        describe(
            "traffic-to-nowhere",
            format!(
                "{}  traffic: [{{ revisionName: traffic-to-nowhere-00009, percent: 100 }}]\n",
                service("traffic-to-nowhere", "", "", "image: 'hello:latest'")
            ),
            ["route", "traffic-to-nowhere-00009", "name a version that exists in spec.traffic"],
        ),
    ]
}

/// Uploads, and calls of what runs.
fn uploads_and_calls() -> Vec<Row> {
    let big = 257 << 20;
    vec![
        Row {
            files: vec![("notes.txt", b"no image".to_vec())],
            ..row("no-image-file", run("image load {dir}/notes.txt"), 1, ["notes.txt", "not an image", "docker save"])
        },
        Row {
            files: vec![("evil.tar", evil_tar())],
            ..row(
                "path-traversal",
                run("image load {dir}/evil.tar"),
                1,
                ["../../escape", "is refused", "make it again"],
            )
        },
        row("too-big", run("deploy {dir}/big"), 1, ["the code", "longer than 256 MiB", ".colibriignore"])
            .with_sparse("big/model.bin", big),
        row(
            "link-out",
            run("deploy {dir}/links"),
            1,
            ["passwd", "is a link to something that is not a file inside", "name the link in .colibriignore"],
        )
        .with_link("links/passwd", "/etc/passwd"),
        row("raises", run("invoke mistaken --path /raise"), 4, ["500", "cure: ", "colibri logs mistaken"]),
        row("too-slow", run("invoke mistaken --path /slow"), 4, ["504", "no answer within 2s", "spec.timeout"]),
        row(
            "no-such-path",
            run("invoke mistaken-web --path /nope"),
            4,
            ["404", "no /nope here", "--path names another"],
        ),
    ]
}

impl Row {
    /// A function whose folder holds a file of that many bytes, without writing them.
    fn with_sparse(mut self, name: &'static str, bytes: u64) -> Self {
        self.files.push(("big/function.yml", b"spec: { runtime: python }\n".to_vec()));
        self.files.push((name, format!("sparse {bytes}").into_bytes()));
        self
    }

    /// A function whose folder holds a link.
    fn with_link(mut self, name: &'static str, target: &str) -> Self {
        self.files.push(("links/function.yml", b"spec: { runtime: python }\n".to_vec()));
        self.files.push((name, format!("link {target}").into_bytes()));
        self
    }
}

/// A tar of one file that wants to lie outside.
fn evil_tar() -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    header[..12].copy_from_slice(b"../../escape");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(b"00000000000");
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend(vec![0; 1024]);
    header
}

/// A program for another kind of processor: the head of an ELF file, for a machine that nobody has.
fn foreign_program() -> Vec<u8> {
    let mut elf = vec![0_u8; 4096];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2; // an executable
    elf[18] = 243; // for RISC-V
    elf[20] = 1;
    elf[52] = 64;
    elf
}

/// How an API server begins to tell of unknown fields; those before 1.25 leave it to kubectl.
fn strict() -> &'static str {
    if layout() == Layout::Kubernetes { "error validating data" } else { "strict decoding error" }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_is_told_with_place_cause_and_cure() -> Result<()> {
    if cannot_run(&["kubectl", "python3", "node", "unshare"]).is_some() {
        return Ok(());
    }
    let world = Arc::new(World::start().await?);
    let mut rows = containers();
    rows.extend(codes());
    rows.extend(uploads_and_calls());
    rows.extend(commands());
    rows.extend(manifests());
    rows.extend(services());
    assert!(rows.len() >= 50, "{} rows", rows.len());
    let slots = Arc::new(Semaphore::new(ABREAST));
    let mut tasks = tokio::task::JoinSet::new();
    for row in rows {
        let (world, slots) = (world.clone(), slots.clone());
        tasks.spawn(async move {
            let _slot = slots.acquire_owned().await?;
            let start = Instant::now();
            let result = world.check(&row).await;
            println!("{:<24} {:>6} ms", row.name, start.elapsed().as_millis());
            result.with_context(|| format!("mistake {}", row.name))
        });
    }
    let mut failures = Vec::new();
    while let Some(result) = tasks.join_next().await {
        if let Err(error) = result? {
            failures.push(format!("{error:#}"));
        }
    }
    assert!(failures.is_empty(), "{} rows failed:\n\n{}", failures.len(), failures.join("\n\n"));
    let world = Arc::into_inner(world).context("every row has ended")?;
    let mut platform = world.platform;
    unknown_fields_pass_as_asked(&platform).await?;
    platform.stop().await
}

/// `kubectl --validate=warn` is warned of unknown fields, `ignore` is not; stored they are in neither case.
async fn unknown_fields_pass_as_asked(platform: &Platform) -> Result<()> {
    let misspelt = [
        ("ksvc", service("NAME", "", "contaners: []", "image: 'hello:latest'"), "spec.template.spec.contaners"),
        (
            "configmap",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: NAME, labls: {} }\ndata: { a: b }\n".to_owned(),
            "metadata.labls",
        ),
    ];
    for (kind, manifest, field) in misspelt {
        let warning = format!("Warning: unknown field \"{field}\"");
        for (mode, is_warned) in [("warn", true), ("ignore", false)] {
            let name = format!("misspelt-{mode}");
            let validate = format!("--validate={mode}");
            let create = ["create", &validate, "-f", "-"];
            let output = platform.kubectl_with(&create, Some(&manifest.replace("NAME", &name))).await?;
            ensure!(output.code == 0, "{kind} {mode}: {}", output.text());
            // Those before 1.25 have no words for it.
            let knows = layout() != Layout::Kubernetes;
            ensure!(output.stderr.contains(&warning) == (is_warned && knows), "{kind} {mode}: {}", output.text());
            let stored = platform.object(kind, &name).await?.to_string();
            let word = field.rsplit('.').next().unwrap_or_default();
            ensure!(!stored.contains(word), "{kind} {mode}: {stored}");
        }
    }
    Ok(())
}

/// The platform, and what the rows share.
struct World {
    platform: Platform,
    registry: String,
    /// A port that somebody listens on.
    taken: std::net::TcpListener,
    dir: PathBuf,
}

impl World {
    async fn start() -> Result<Self> {
        // There is no Node.js on this machine, as far as the platform can see.
        let options = Options { hidden: Some("node"), ..Options::default() };
        let platform = Platform::start(options).await?;
        let dir = platform.scratch().join("rows");
        fs::create_dir_all(&dir)?;
        let world =
            Self { registry: registry().await?, taken: std::net::TcpListener::bind("127.0.0.1:0")?, platform, dir };
        world.images().await?;
        world.kubeconfigs().await?;
        world.workloads().await?;
        Ok(world)
    }

    async fn images(&self) -> Result<()> {
        self.platform.load_hello().await?;
        let foreign = self.dir.join("foreign");
        fs::write(&foreign, foreign_program())?;
        let unready = self.dir.join("unready");
        fs::create_dir_all(&unready)?;
        fs::write(unready.join("web"), "#!/bin/sh\n")?;
        let pack = ["image", "pack", "--load"];
        let foreign = foreign.to_string_lossy();
        self.platform.colibri(&[&pack[..], &[&foreign, "--tag", "foreign:latest"]].concat()).await?.ok()?;
        let unready = unready.to_string_lossy();
        let unready = [&pack[..], &[&unready, "--tag", "unready:latest", "--entrypoint", "/web"]].concat();
        self.platform.colibri(&unready).await?.ok()?;
        Ok(())
    }

    /// One of a server that is not there, and one of somebody without rights.
    async fn kubeconfigs(&self) -> Result<()> {
        let admin = self.platform.data_dir().join("kubeconfig");
        let text = fs::read_to_string(&admin)?;
        let server = text.lines().find(|line| line.trim().starts_with("server:")).context("a server")?.trim();
        fs::write(self.dir.join("dead"), text.replace(server, "server: https://127.0.0.1:1"))?;
        fs::write(self.dir.join("nobody"), &text)?;
        self.platform.kubectl(&["create", "serviceaccount", "nobody"]).await?.ok()?;
        let token = self.platform.kubectl(&["create", "token", "nobody"]).await?.ok()?;
        let nobody = self.dir.join("nobody").to_string_lossy().into_owned();
        let config = ["config", "--kubeconfig", &nobody];
        let token = format!("--token={}", token.trim());
        self.platform.kubectl(&[&config[..], &["set-credentials", "nobody", &token]].concat()).await?.ok()?;
        self.platform.kubectl(&[&config[..], &["set-context", "--current", "--user=nobody"]].concat()).await?.ok()?;
        Ok(())
    }

    /// A function and a service that are well.
    async fn workloads(&self) -> Result<()> {
        let good = self.dir.join("good");
        let code = "import time\n\n\ndef handle(request):\n    if request.path == '/raise':\n        raise ValueError('x')\n    if request.path == '/slow':\n        time.sleep(30)\n    return 'ok'\n";
        write_all(
            &good,
            &[("function.yml", b"spec: { runtime: python, timeout: 2s }\n"), ("main.py", code.as_bytes())],
        )?;
        let file = self.dir.join("mistaken-service.yml");
        let two = ["mistaken-service", "mistaken-web"].map(|name| service(name, "", "", "image: 'hello:latest'"));
        fs::write(&file, two.join("---\n"))?;
        let (good, file) = (good.to_string_lossy(), file.to_string_lossy());
        self.platform.colibri(&["deploy", &good, "--name", "mistaken"]).await?.ok()?;
        self.platform.colibri(&["deploy", "-f", &file]).await?.ok()?;
        Ok(())
    }

    /// Makes the mistake and looks at what is said.
    async fn check(&self, row: &Row) -> Result<()> {
        let dir = self.dir.join(row.name);
        for (name, content) in &row.files {
            write_special(&dir.join(name), content)?;
        }
        fs::create_dir_all(&dir)?;
        let dir_text = dir.to_string_lossy().into_owned();
        let processor = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let says = row.says.map(|text| text.replace("{dir}", &dir_text).replace("{processor}", processor));
        let file = dir.join("service.yml").to_string_lossy().into_owned();
        let output = match &row.act {
            Act::Run(words) => {
                let words: Vec<String> = words.iter().map(|word| self.fill(word, &dir_text)).collect();
                self.colibri(&words.iter().map(String::as_str).collect::<Vec<_>>()).await?
            }
            Act::Deploy(files) => {
                let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
                write_all(&dir, &files)?;
                self.colibri(&["deploy", &dir_text]).await?
            }
            Act::File(text) => {
                fs::write(&file, self.fill(text, &dir_text))?;
                self.colibri(&["deploy", "-f", &file]).await?
            }
            Act::Describe(text) => {
                fs::write(&file, self.fill(text, &dir_text))?;
                self.colibri(&["deploy", "-f", &file, "--no-wait"]).await?.ok()?;
                let told = self.described(row.name, &says).await;
                // What never becomes ready goes on being probed.
                self.colibri(&["delete", row.name, "--no-wait"]).await?;
                told?
            }
            Act::Kubectl(text) => self.platform.kubectl_with(&["apply", "-f", "-"], Some(text)).await?,
        };
        ensure!(output.code == row.code, "exit code {} instead of {}:\n{}", output.code, row.code, output.text());
        for word in &says {
            ensure!(output.text().contains(word.as_str()), "{word:?} is not said:\n{}", output.text());
        }
        Ok(())
    }

    /// The CLI; rows that start a platform name their own directory.
    async fn colibri(&self, words: &[&str]) -> Result<Output> {
        if words.contains(&"--data-dir") {
            let mut command = std::process::Command::new(e2e::binary("colibri"));
            command.args(words);
            return e2e::run(command, None).await;
        }
        self.platform.colibri(words).await
    }

    async fn described(&self, name: &str, says: &[String]) -> Result<Output> {
        let start = Instant::now();
        loop {
            let output = self.platform.colibri(&["describe", name]).await?;
            if start.elapsed() > PATIENCE || says.iter().all(|word| output.text().contains(word.as_str())) {
                return Ok(output);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn fill(&self, text: &str, dir: &str) -> String {
        let own = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let admin = self.platform.data_dir().join("kubeconfig");
        let taken = self.taken.local_addr().map(|address| address.port().to_string()).unwrap_or_default();
        text.replace("{dir}", dir)
            .replace("{registry}", &self.registry)
            .replace("{taken}", &taken)
            .replace("{node}", &e2e::role_dir(self.platform.data_dir(), "node").to_string_lossy())
            .replace("{admin}", &admin.to_string_lossy())
            .replace("{dead}", &own("dead"))
            .replace("{nobody}", &own("nobody"))
            .replace("{good}", &own("good"))
    }
}

fn write_all(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    fs::create_dir_all(dir)?;
    for (name, content) in files {
        fs::write(dir.join(name), content)?;
    }
    Ok(())
}

/// `sparse N` is N bytes that take no place, `link T` a link to T, anything else itself.
fn write_special(path: &Path, content: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().context("a folder")?)?;
    let text = String::from_utf8_lossy(content);
    if let Some(bytes) = text.strip_prefix("sparse ") {
        fs::File::create(path)?.set_len(bytes.parse()?)?;
    } else if let Some(target) = text.strip_prefix("link ") {
        std::os::unix::fs::symlink(target, path)?;
    } else {
        fs::write(path, content)?;
    }
    Ok(())
}

/// An image for a machine that nobody has here, and its digest, which the client computes again.
const FOREIGN_INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":2,"platform":{"architecture":"s390x","os":"linux"}}]}"#;
const FOREIGN_DIGEST: &str = "sha256:c1219da43244ef4cd0c4174505400d30f66f5fe577c8e1b86d359b840bd143b4";

/// A registry that has one image, and gives some of what it does not have to nobody.
async fn registry() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 8192];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let (status, code) = match path {
                    "/v2/" => ("200 OK", ""),
                    path if path.contains("private") => ("401 Unauthorized", "UNAUTHORIZED"),
                    path if path.contains("foreign/manifests") => ("200 OK", ""),
                    _ => ("404 Not Found", "MANIFEST_UNKNOWN"),
                };
                let text = code.to_lowercase().replace('_', " ");
                let mut body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"{text}\"}}]}}");
                let mut headers = "content-type: application/json".to_owned();
                if path.contains("foreign/manifests") {
                    FOREIGN_INDEX.clone_into(&mut body);
                    headers = format!(
                        "content-type: application/vnd.oci.image.index.v1+json\r\ndocker-content-digest: {FOREIGN_DIGEST}"
                    );
                }
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status}\r\n{headers}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                if request.starts_with("HEAD ") {
                    body.clear();
                }
                // The client may be gone.
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    Ok(address.to_string())
}
