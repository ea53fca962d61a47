// The whole runtime as a process, spoken to over sockets.
"use strict";

const assert = require("node:assert");
const { spawn } = require("node:child_process");
const { once } = require("node:events");
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");
const { afterEach, test } = require("node:test");

const HERE = path.dirname(__dirname);
const started = [];

afterEach(() => {
  for (const one of started.splice(0)) one.end();
});

/** A running function. */
class Process {
  constructor(code, { file = "index.mjs", ...env } = {}) {
    this.folder = fs.mkdtempSync(path.join(os.tmpdir(), "colibri-"));
    fs.writeFileSync(path.join(this.folder, file), code);
    // As in the sandbox, where the link is in the root folder.
    fs.mkdirSync(path.join(this.folder, "node_modules"));
    fs.symlinkSync(path.join(HERE, "colibri-runtime"), path.join(this.folder, "node_modules/colibri-runtime"));
    this.env = { COLIBRI_CODE: this.folder, COLIBRI_FUNCTION: "f", ...env };
    this.log = "";
    started.push(this);
  }

  async start() {
    const free = net.createServer().listen(0, "127.0.0.1");
    await once(free, "listening");
    this.port = free.address().port;
    free.close();
    this.child = spawn(process.execPath, [path.join(HERE, "boot.js")], { env: { ...this.env, PORT: this.port } });
    this.child.stdout.on("data", (data) => (this.log += data));
    this.child.stderr.on("data", (data) => (this.log += data));
    this.exit = once(this.child, "close").then(([code]) => (this.code = code));
    return this;
  }

  async connect() {
    for (;;) {
      const socket = net.connect(this.port, "127.0.0.1");
      try {
        await once(socket, "connect");
        return socket;
      } catch {
        assert.strictEqual(this.code, undefined, `the runtime ended: ${this.log}`);
        await sleep(5);
      }
    }
  }

  /** One request on a connection of its own, or on `agent`. */
  async call(target = "/", { body, agent = false, ...options } = {}) {
    (await this.connect()).destroy();
    const message = http.request({ port: this.port, path: target, agent, ...options });
    message.end(body);
    const [response] = await once(message, "response");
    let text = "";
    try {
      for await (const part of response) text += part;
    } catch {
      text += "<cut>";
    }
    return { status: response.statusCode, headers: response.headers, body: text };
  }

  /** Bytes on a connection of their own, and all that comes back. */
  async raw(text) {
    const socket = await this.connect();
    socket.write(text);
    let answer = "";
    for await (const part of socket) answer += part;
    return answer;
  }

  async logged(text) {
    while (!this.log.includes(text)) await sleep(5);
  }

  async stop() {
    this.child.kill("SIGTERM");
    return this.exit;
  }

  end() {
    this.child?.kill("SIGKILL");
    fs.rmSync(this.folder, { recursive: true, force: true });
  }
}

function run(code, options) {
  return new Process(code, options).start();
}

test("requests on one connection", async () => {
  const code = "exports.handle = (r) => ({ m: r.method, p: r.path, q: r.query.a, b: r.text() })";
  const one = await run(code, { file: "index.js" });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  for (const number of [1, 2, 3]) {
    const { status, headers, body } = await one.call(`/${number}?a=b`, { method: "POST", body: "x", agent });
    assert.deepStrictEqual([status, JSON.parse(body)], [200, { m: "POST", p: `/${number}`, q: "b", b: "x" }]);
    assert.notStrictEqual(headers.connection, "close");
  }
  const head = await one.call("/", { method: "HEAD", agent });
  assert.deepStrictEqual([head.status, head.headers["content-length"], head.body], [200, "28", ""]);
  agent.destroy();
  assert.strictEqual(await one.stop(), 0);
});

test("an error is in the log and not in the answer", async () => {
  const one = await run("export function handle() {\n  console.log('before');\n  throw new TypeError('secret');\n}");
  const { status, headers, body } = await one.call("/", { headers: { "x-request-id": "id-7" } });
  assert.deepStrictEqual([status, headers["x-colibri-invocation-id"], body.includes("secret")], [500, "id-7", false]);
  await one.stop();
  assert.match(one.log, /^before$/m);
  assert.match(one.log, /^\[id-7\] TypeError: secret$/m);
  assert.match(one.log, /^\[id-7\] .*index\.mjs:3:9/m);
  assert.doesNotMatch(one.log, /server\.js|node:/);
});

test("errors that nobody catches fail their own request alone", async () => {
  const code = `
    export async function handle(request) {
      if (request.path === "/timer") return new Promise(() => setTimeout(() => { throw new Error("in a timer") }, 1));
      if (request.path === "/promise") return new Promise(() => { Promise.reject(new Error("in a promise")) });
      if (request.path === "/exit") process.exit(3);
      return "fine";
    }`;
  const one = await run(code);
  const paths = ["/timer", "/", "/promise", "/exit"];
  const answers = await Promise.all(paths.map((path) => one.call(path, { headers: { "x-request-id": `id${path.slice(1)}` } })));
  assert.deepStrictEqual(answers.map(({ status }) => status), [500, 200, 500, 500]);
  assert.strictEqual((await one.call()).body, "fine");
  await one.stop();
  for (const text of ["[idtimer] Error: in a timer", "[idpromise] Error: in a promise", "[idexit] Exit [Error]", "exit(3)"]) {
    assert.ok(one.log.includes(text), one.log);
  }
});

test("streams", async () => {
  const code = `
    import { Readable } from "node:stream";
    export async function* handle(request) {
      if (request.path === "/early") throw new Error("early");
      yield "one ";
      if (request.path === "/late") throw new Error("late");
      yield Buffer.from("two");
    }
    export const readable = () => Readable.from(["a", "b"]);
    export const large = function* () { for (let i = 0; i < 64; i++) yield Buffer.alloc(65536, "x") };
  `;
  const one = await run(code);
  const { status, headers, body } = await one.call();
  assert.deepStrictEqual([status, headers["transfer-encoding"], body], [200, "chunked", "one two"]);
  assert.strictEqual((await one.call("/early")).status, 500);
  assert.strictEqual((await one.call("/late")).body, "one <cut>");
  assert.deepStrictEqual((await one.call("/", { method: "HEAD" })).body, "");
  await one.stop();
  assert.match(one.log, /Error: late/);
  const readable = await run(code, { COLIBRI_HANDLER: "index.readable" });
  assert.strictEqual((await readable.call()).body, "ab");
  const large = await run(code, { COLIBRI_HANDLER: "index.large" });
  assert.strictEqual((await large.call()).body.length, 64 * 65536);
});

test("a stream ends when its client goes", async () => {
  const code = `
    export async function* handle() {
      try {
        for (;;) { yield "x"; await new Promise((resolve) => setTimeout(resolve, 1)); }
      } finally {
        console.log("ended");
      }
    }`;
  const one = await run(code);
  const socket = await one.connect();
  socket.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
  await once(socket, "data");
  socket.destroy();
  await one.logged("ended");
});

test("async handlers run at the same time", async () => {
  const code = `
    let [now, most] = [0, 0];
    export async function handle(request, context) {
      if (request.path === "/most") return most;
      most = Math.max(most, ++now);
      while (request.path === "/" && now < 8) await new Promise((resolve) => setTimeout(resolve, 1));
      return context.function;
    }`;
  const one = await run(code);
  const answers = await Promise.all(Array.from({ length: 8 }, () => one.call()));
  assert.deepStrictEqual(new Set(answers.map(({ body }) => body)), new Set(["f"]));
  assert.strictEqual((await one.call("/most")).body, "8\n");
});

test("what a handler may import, and the context", async () => {
  const code = `
    import { Response } from "colibri-runtime";
    export function handle(request, context) {
      context.logger.warn("made", { a: 1 });
      const { invocationId, version, namespace } = context;
      const late = context.remaining() > 1000 || context.deadline < Date.now();
      return new Response({ invocationId, version, namespace, late }, 201, { "X-A": "b", "set-cookie": ["c=1", "d=2"] });
    }`;
  const one = await run(code, { K_REVISION: "f-00001", COLIBRI_NAMESPACE: "n", COLIBRI_TIMEOUT_MS: "1000" });
  const { status, headers, body } = await one.call("/", { headers: { "x-request-id": "i" } });
  assert.deepStrictEqual([status, headers["x-a"], headers["set-cookie"]], [201, "b", ["c=1", "d=2"]]);
  assert.deepStrictEqual(JSON.parse(body), { invocationId: "i", version: "f-00001", namespace: "n", late: false });
  await one.stop();
  assert.match(one.log, /^WARNING f \[i\] made { a: 1 }$/m);
  const commonjs = await run('const { Event } = require("colibri-runtime"); module.exports = () => typeof Event', { file: "main.cjs" });
  assert.strictEqual((await commonjs.call()).body, "function");
});

test("the answer of the web's fetch", async () => {
  const one = await run('export const handle = () => new Response("hi", { status: 202, headers: { "x-a": "b" } })');
  const { status, headers, body } = await one.call();
  assert.deepStrictEqual([status, headers["x-a"], body], [202, "b", "hi"]);
});

test("events", async () => {
  const code = `
    import { Event } from "colibri-runtime";
    export const handle = (event) => new Event({ type: "reply", source: "/f", data: { was: event.type } });`;
  const one = await run(code);
  const headers = { "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-specversion": "1.0" };
  const reply = await one.call("/", { method: "POST", headers });
  assert.deepStrictEqual([reply.status, reply.headers["ce-type"], reply.body], [200, "reply", '{"was":"t"}']);
  const refused = await one.call("/", { method: "POST" });
  assert.strictEqual(refused.status, 400);
  assert.match(refused.body, /header ce-id/);
});

test("applications of node's own form", async () => {
  const code = `
    export async function handle(req, res) {
      if (req.url === "/fail") throw new Error("no");
      if (req.url === "/half") { res.write("half"); throw new Error("no"); }
      res.statusCode = 203;
      for await (const part of req) res.write(part);
      res.end("!");
    }`;
  const one = await run(code);
  const answers = [await one.call("/", { method: "POST", body: "x" }), await one.call("/fail"), await one.call("/half")];
  assert.deepStrictEqual(answers.map(({ status }) => status), [203, 500, 200]);
  assert.deepStrictEqual([answers[0].body, answers[2].body], ["x!", "half<cut>"]);
});

// As these packages' apps are made, as far as a runtime sees: methods that need their `this`, middleware in order, JSON.
const APPS = {
  express: `
    const methods = {
      use(layer) { this.stack.push(layer); return this; },
      get(path, answer) { return this.use((req, res, next) => (req.method === "GET" && req.url.split("?")[0] === path ? answer(req, res) : next())); },
      handle(req, res) {
        res.json = (value) => { res.setHeader("content-type", "application/json"); res.end(JSON.stringify(value)); };
        let at = 0;
        const next = () => { const layer = this.stack[at++]; if (layer) return layer(req, res, next); res.statusCode = 404; res.end("Cannot " + req.method + " " + req.url); };
        next();
      },
      listen() { throw new Error("the runtime listens"); },
    };
    function express() {
      const app = (req, res, next) => app.handle(req, res, next);
      return Object.assign(app, methods, { stack: [] });
    }
    const app = express();
    app.use((req, res, next) => { res.setHeader("x-first", "1"); next(); });
    app.get("/hi", (req, res) => res.json({ name: "bob" }));`,
  koa: `
    class Koa {
      middleware = [];
      use(layer) { this.middleware.push(layer); return this; }
      callback() {
        return async (req, res) => {
          const ctx = { req, path: req.url.split("?")[0], status: 404, body: "Not Found" };
          const run = async (at) => this.middleware[at]?.(ctx, () => run(at + 1));
          await run(0);
          res.statusCode = ctx.status;
          res.setHeader("content-type", "application/json");
          res.setHeader("x-first", "1");
          res.end(JSON.stringify(ctx.body));
        };
      }
      listen() { throw new Error("the runtime listens"); }
    }
    const app = new Koa();
    app.use(async (ctx, next) => { if (ctx.path === "/hi") Object.assign(ctx, { status: 200, body: { name: "bob" } }); await next(); });`,
  fastify: `
    function fastify() {
      const routes = new Map();
      let loaded = false;
      return {
        get(path, answer) { routes.set(path, answer); },
        async ready() { loaded = true; },
        routing(req, res) {
          if (!loaded) throw new Error("the app is not ready");
          const answer = routes.get(req.url.split("?")[0]);
          res.statusCode = answer ? 200 : 404;
          res.setHeader("content-type", "application/json");
          res.setHeader("x-first", "1");
          res.end(JSON.stringify(answer ? answer(req) : {}));
        },
        listen() { throw new Error("the runtime listens"); },
      };
    }
    const app = fastify();
    app.get("/hi", () => ({ name: "bob" }));`,
};

for (const [name, code] of Object.entries(APPS)) {
  for (const [file, last] of Object.entries({ "index.js": "module.exports = app;", "index.mjs": "export default app;" })) {
    test(`an app of ${name}'s form in ${file}`, async () => {
      const one = await run(code + last, { file });
      const [found, missing] = [await one.call("/hi?x=1"), await one.call("/no")];
      assert.deepStrictEqual([found.status, JSON.parse(found.body), found.headers["x-first"]], [200, { name: "bob" }, "1"], one.log);
      assert.strictEqual(missing.status, 404);
    });
  }
}

test("bodies are limited", async () => {
  const one = await run("export const handle = (request) => request.body.length", { COLIBRI_BODY_LIMIT_BYTES: "10" });
  const sized = await one.call("/", { method: "POST", body: "x".repeat(11) });
  assert.deepStrictEqual([sized.status, sized.headers.connection], [413, "close"]);
  assert.match(sized.body, /longer than 10 bytes/);
  const chunked = { "transfer-encoding": "chunked" };
  assert.strictEqual((await one.call("/", { method: "POST", headers: chunked, body: "x".repeat(11) })).status, 413);
  assert.strictEqual((await one.call("/", { method: "POST", headers: chunked, body: "x".repeat(10) })).body, "10\n");
  const expects = "POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: ";
  assert.match(await one.raw(`${expects}11\r\n\r\n`), /^HTTP\/1.1 413 /);
  assert.match(await one.raw(`${expects}2\r\n\r\nxx`), /^HTTP\/1.1 100 Continue\r\n\r\nHTTP\/1.1 200 OK/);
});

test("wrong requests are told why, and the next are answered", async () => {
  const one = await run("export const handle = () => null");
  const rows = [
    ["NONSENSE\r\n\r\n", /^HTTP\/1.1 400 [^]*not valid HTTP/],
    ["POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", /^HTTP\/1.1 400 /],
    ["POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", /^HTTP\/1.1 400 /],
    ["GET / HTTP/1.1\r\nhost: x\r\na: \0\r\n\r\n", /^HTTP\/1.1 400 /],
    [`GET / HTTP/1.1\r\nhost: x\r\na: ${"b".repeat(70_000)}\r\n\r\n`, /^HTTP\/1.1 431 [^]*longer than 65536 bytes/],
  ];
  for (const [text, expected] of rows) assert.match(await one.raw(text), expected);
  assert.strictEqual((await one.call()).status, 204);
});

test("no header can be smuggled into an answer", async () => {
  const one = await run("export const handle = (request) => ({ status: 200, headers: { a: 'b\\r\\nc: d' }, body: 'x' })");
  const { status, headers } = await one.call();
  assert.deepStrictEqual([status, headers.c], [500, undefined]);
});

test("SIGTERM lets requests end and takes no new ones", async () => {
  const code = `
    export async function handle(request) {
      console.log("in");
      await new Promise((resolve) => setTimeout(resolve, 300));
      return "done";
    }`;
  const one = await run(code);
  const idle = await one.connect();
  const answer = one.call();
  await one.logged("in\n");
  one.child.kill("SIGTERM");
  const { status, headers, body } = await answer;
  assert.deepStrictEqual([status, headers.connection, body], [200, "close", "done"]);
  assert.strictEqual(await one.exit, 0);
  idle.destroy();
});

test("a function's own end at SIGTERM waits for the requests in flight", async () => {
  const code = `
    process.on("SIGTERM", () => process.exit(7));
    export async function handle(request) {
      console.log("in");
      await new Promise((resolve) => setTimeout(resolve, 200));
      return "done";
    }`;
  const one = await run(code);
  const answer = one.call();
  await one.logged("in\n");
  one.child.kill("SIGTERM");
  assert.strictEqual((await answer).body, "done");
  assert.strictEqual(await one.exit, 0);
  assert.doesNotMatch(one.log, /Exit/);
});

test("code that cannot be loaded ends the process", async () => {
  const syntax = await run("export function handle(:\n");
  assert.strictEqual(await syntax.exit, 1);
  assert.match(syntax.log, /^index\.mjs:1: SyntaxError: /);
  const later = await run("setTimeout(() => { throw new Error('late') }, 1); await new Promise(() => {})");
  assert.strictEqual(await later.exit, 1);
  assert.match(later.log, /^index\.mjs:1: Error: late/);
  const never = await run("await new Promise(() => {})");
  assert.strictEqual(await never.exit, 1);
  assert.match(never.log, /waits for something that never comes/);
  const shape = await run("export const handle = 3");
  assert.strictEqual(await shape.exit, 1);
  assert.match(shape.log, /index\.mjs: the handler is of type number/);
  const signature = await run("export const handle = () => 3", { COLIBRI_SIGNATURE: "wsgi" });
  assert.strictEqual(await signature.exit, 1);
  assert.match(signature.log, /signature wsgi is not one of/);
});
