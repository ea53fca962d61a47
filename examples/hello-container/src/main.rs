//! A small HTTP/1.1 server to try the platform with: no framework, one thread for each connection.
//!
//! | Path          | Answer                                                     |
//! |---------------|------------------------------------------------------------|
//! | `/`           | `Hello TARGET from POD`                                    |
//! | `/sleep?ms=N` | the same after N milliseconds, at most a minute            |
//! | `/echo`       | the request's body                                         |
//! | `/exit?code=N`| ends the process with that code, to see a restart          |
//!
//! Each answer says in `x-in-flight` how many requests the process had at that moment and in `x-peak-in-flight` how
//! many it ever had. It listens on `PORT` (default 8080) and ends after the requests in flight at SIGTERM or SIGINT.

mod http;
mod stop;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Connection, Request, Response};

/// Connections beyond this are closed at once.
const MOST_CONNECTIONS: usize = 2048;
/// Longest `/sleep`.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Longest wait for requests in flight at the end.
const GRACE: Duration = Duration::from_secs(25);

/// What all connections share.
struct App {
    greeting: String,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    peak: AtomicUsize,
}

fn main() {
    let port = std::env::var("PORT").ok().and_then(|text| text.parse().ok()).unwrap_or(8080);
    // Before any thread, so that each of them has the signals blocked.
    let signals = stop::Signals::block();
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(listener) => Arc::new(listener),
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            std::process::exit(1);
        }
    };
    println!("listening on port {port}");
    let app = Arc::new(App {
        greeting: greeting(),
        connections: AtomicUsize::new(0),
        in_flight: AtomicUsize::new(0),
        peak: AtomicUsize::new(0),
    });
    let accepting = (app.clone(), listener);
    std::thread::spawn(move || accept(&accepting.0, &accepting.1));
    signals.wait();
    drain(&app);
    println!("stopped");
}

fn greeting() -> String {
    let target = std::env::var("TARGET").unwrap_or_else(|_| "World".to_owned());
    let pod = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let pod = match pod.trim() {
        "" => std::env::var("HOSTNAME").unwrap_or_else(|_| "somewhere".to_owned()),
        name => name.to_owned(),
    };
    format!("Hello {target} from {pod}\n")
}

fn accept(app: &Arc<App>, listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if app.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            app.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let serving = app.clone();
        let spawned = std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
            serve(&serving, stream);
            serving.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            app.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Answers the requests of one connection until it ends.
fn serve(app: &App, stream: TcpStream) {
    let Ok(mut connection) = Connection::new(stream) else { return };
    while let Ok(Some(request)) = connection.next_request() {
        let now = app.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        app.peak.fetch_max(now, Ordering::SeqCst);
        let response = answer(app, &request);
        let peak = app.peak.load(Ordering::SeqCst);
        let written = connection.respond(&request, &response, &[("x-in-flight", now), ("x-peak-in-flight", peak)]);
        app.in_flight.fetch_sub(1, Ordering::SeqCst);
        if written.is_err() || !request.keep_alive {
            return;
        }
    }
}

fn answer(app: &App, request: &Request) -> Response {
    match request.path() {
        "/" => Response::text(200, app.greeting.clone()),
        "/healthz" => Response::text(200, "ok\n".to_owned()),
        "/echo" => Response { status: 200, body: request.body.clone() },
        "/sleep" => {
            let asked = Duration::from_millis(request.number("ms").unwrap_or(0));
            std::thread::sleep(asked.min(LONGEST_SLEEP));
            Response::text(200, app.greeting.clone())
        }
        "/exit" => {
            let code = request.number("code").and_then(|code| i32::try_from(code).ok()).unwrap_or(1);
            std::process::exit(code);
        }
        path => Response::text(404, format!("no {path} here; try /, /sleep?ms=100 or /echo\n")),
    }
}

fn drain(app: &App) {
    let step = Duration::from_millis(5);
    let mut waited = Duration::ZERO;
    while app.in_flight.load(Ordering::SeqCst) > 0 && waited < GRACE {
        std::thread::sleep(step);
        waited += step;
    }
}
