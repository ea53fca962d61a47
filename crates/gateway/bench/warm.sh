#!/bin/sh
# What one hop costs: wrk against the workload itself, the gateway, and nginx, in one run.
# Needs nginx and wrk (apt-get install nginx-light wrk). Usage: bench/warm.sh [SECONDS]
set -eu
cd "$(dirname "$0")/../../.."
seconds=${1:-8}
# WARM names a program that is built already; figures count only with a release build.
warm=${WARM:-}
if [ -z "$warm" ]; then
  cargo build --release -p gateway --example warm
  target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
  warm=$target/release/examples/warm
fi
dir=$(mktemp -d)
pids=""
trap 'for pid in $pids; do kill "$pid" 2>/dev/null || true; done; rm -rf "$dir"' EXIT
cat > "$dir/nginx.conf" <<CONF
worker_processes auto;
pid $dir/nginx.pid;
error_log $dir/error.log;
daemon off;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path $dir; proxy_temp_path $dir; fastcgi_temp_path $dir; uwsgi_temp_path $dir; scgi_temp_path $dir;
  keepalive_requests 10000000;
  upstream workload { server 127.0.0.1:19001; keepalive 256; keepalive_requests 10000000; }
  server {
    listen 127.0.0.1:19003;
    location / {
      proxy_pass http://workload;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host \$host;
      proxy_set_header X-Forwarded-For \$proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto \$scheme;
    }
  }
}
CONF
"$warm" backend 127.0.0.1:19001 & pids="$pids $!"
"$warm" gateway 127.0.0.1:19002 127.0.0.1:19001 & pids="$pids $!"
nginx -c "$dir/nginx.conf" & pids="$pids $!"
sleep 1
run() { # name port connections
  printf '%-8s %3s connections: ' "$1" "$3"
  wrk -t1 -c"$3" -d"${seconds}s" --latency -H 'Host: hello.ns.localhost' "http://127.0.0.1:$2/" |
    awk '/50%/{p50=$2} /99%/{p99=$2} /Requests\/sec/{rps=$2} /Non-2xx/{bad=$0} END{print "p50", p50, "p99", p99, rps, "requests/s", bad}'
}
for connections in 1 8 64; do
  run direct 19001 "$connections"
  run gateway 19002 "$connections"
  run nginx 19003 "$connections"
done
