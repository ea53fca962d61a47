// The server: loads the function, then answers requests until SIGTERM.
//
// The platform's gateway keeps the number of requests in flight at the function's concurrency; here they share one
// thread, as JavaScript does. An error that nobody catches fails the request it belongs to and not the process.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const { AsyncLocalStorage } = require("node:async_hooks");

const { asBytes, toAnswer } = require("./answer.js");
const { Exit, LoadError, explain, load } = require("./load.js");
const { Context, Request, newId } = require("./message.js");
const { EVENT, HTTP, NODE, shapeOf } = require("./shape.js");

const HEAD_LIMIT_BYTES = 64 * 1024;
const MOST_CONNECTIONS = 4096;
const TERMINATION_LOG = "/dev/termination-log";
const TEXT = "text/plain; charset=utf-8";
const END = process.exit.bind(process);

/** What the platform says, by environment variables. */
function configOf(env) {
  const number = (name, standard) => (/^\d{1,15}$/.test(env[name] ?? "") ? Number(env[name]) : standard);
  return {
    code: (env.COLIBRI_CODE || "/code").replace(/\/+$/, ""),
    handler: env.COLIBRI_HANDLER ?? "",
    signature: env.COLIBRI_SIGNATURE ?? "",
    function: env.COLIBRI_FUNCTION ?? "",
    namespace: env.COLIBRI_NAMESPACE ?? "",
    version: env.K_REVISION ?? "",
    timeoutMs: number("COLIBRI_TIMEOUT_MS", 300_000),
    bodyLimit: number("COLIBRI_BODY_LIMIT_BYTES", 64 << 20),
    port: number("PORT", 8080),
  };
}

/** The request is wrong; the connection ends after the answer. */
class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** The client has gone: nobody waits for an answer. */
class Gone extends Error {}

/** One request that is being answered. */
class Invocation {
  constructor(message, response) {
    this.message = message;
    this.response = response;
    this.id = message.headers["x-request-id"] || newId();
  }

  /** An error of the function: a 500 with the id where that can still be said, else the answer is cut off. */
  fail(error) {
    logFailure(this.id, error);
    const { response } = this;
    if (response.headersSent) {
      // Not before what was written is on its way.
      if (!response.writableEnded) setImmediate(() => response.destroy());
      return;
    }
    const text = `the function failed; its log tells more under the id ${this.id}\n`;
    const id = /^[\w.!#$%&'*+^`|~-]+$/.test(this.id) ? [["x-colibri-invocation-id", this.id]] : [];
    this.write({ status: 500, headers: [["content-type", TEXT], ...id], body: Buffer.from(text) });
  }

  /** What was wrong with the request, and the end of the connection. */
  refuse({ status, message }) {
    const headers = [["content-type", TEXT], ["connection", "close"]];
    this.write({ status, headers, body: Buffer.from(`${message}\n`) });
  }

  /** Writes an answer whose body is there. */
  write({ status, headers, body }) {
    this.head(status, headers, body);
    this.response.end(body);
  }

  /** Sets the head, with the framing that the body needs; it is sent with the first byte. */
  head(status, headers, body) {
    const { response } = this;
    for (const name of response.getHeaderNames()) response.removeHeader(name);
    response.statusCode = status;
    for (const [name, value] of headers) {
      const lower = name.toLowerCase();
      const isFraming = lower === "transfer-encoding" || (lower === "content-length" && Buffer.isBuffer(body));
      if (!isFraming) response.appendHeader(name, value);
    }
    if (Buffer.isBuffer(body) && status !== 204 && status !== 304) response.setHeader("content-length", body.length);
    if (stopping) response.setHeader("connection", "close");
  }

  /** Streams an answer's body; a client that reads slowly slows the function down. */
  async stream({ status, headers, body }) {
    const { response } = this;
    try {
      // The first piece comes before the head, so that a function that fails at once is a 500.
      let item = await body.next();
      this.head(status, headers, body);
      response.flushHeaders();
      while (!item.done && !response.destroyed && this.message.method !== "HEAD") {
        if (!response.write(piece(item.value))) await drained(response);
        item = await body.next();
      }
      response.end();
    } finally {
      await body.return?.();
    }
  }
}

/** One piece of a streamed body as bytes. */
function piece(value) {
  const bytes = typeof value === "string" ? Buffer.from(value) : asBytes(value);
  if (!bytes) throw new TypeError(`the function streamed ${typeof value}, which is neither text nor bytes`);
  return bytes;
}

/** Until the client has read what was written, or is gone. */
function drained(response) {
  return new Promise((resolve) => {
    const done = () => {
      response.off("drain", done);
      response.off("close", done);
      resolve();
    };
    response.on("drain", done);
    response.on("close", done);
  });
}

/** The whole body, up to the limit. */
function readBody(message, limit) {
  return new Promise((resolve, reject) => {
    const parts = [];
    let length = 0;
    message.on("data", (part) => {
      length += part.length;
      if (length <= limit) return parts.push(part);
      // The rest is read and thrown away, so that the client gets to see the answer.
      parts.length = 0;
      return reject(tooLong(limit));
    });
    message.on("end", () => resolve(parts.length === 1 ? parts[0] : Buffer.concat(parts)));
    message.on("close", () => reject(new Gone()));
  });
}

function tooLong(limit) {
  return new Refused(413, `the body is longer than ${limit} bytes`);
}

let stopping = false;

/** Serves one handler. */
class Server {
  constructor(config, shape) {
    this.config = config;
    this.shape = shape;
    this.inFlight = 0;
    this.current = new AsyncLocalStorage();
    this.http = http.createServer({ maxHeaderSize: HEAD_LIMIT_BYTES, noDelay: true }, (message, response) => {
      this.take(message, response);
    });
    this.http.on("checkContinue", (message, response) => {
      if (!this.isTooLong(message)) response.writeContinue();
      this.take(message, response);
    });
    this.http.on("clientError", refuseConnection);
    // The gateway decides how long an idle connection is kept.
    this.http.keepAliveTimeout = 0;
    this.http.maxConnections = MOST_CONNECTIONS;
  }

  /** Listens on the configured port of every address; to name one would load `node:dns`. */
  listen() {
    return new Promise((resolve, reject) => {
      this.http.on("error", reject);
      this.http.listen({ port: this.config.port, backlog: 1024 }, resolve);
    });
  }

  take(message, response) {
    this.inFlight++;
    response.on("close", () => {
      this.inFlight--;
      if (stopping && this.inFlight === 0) this.ended?.();
    });
    // To write the date for the first time takes a millisecond of a cold start.
    response.sendDate = false;
    // A connection that breaks is no error of the function.
    response.on("error", () => {});
    const invocation = new Invocation(message, response);
    this.current.run(invocation, () => this.answer(invocation));
  }

  isTooLong(message) {
    return Number(message.headers["content-length"] ?? 0) > this.config.bodyLimit;
  }

  async answer(invocation) {
    try {
      await this.invoke(invocation);
    } catch (error) {
      if (error instanceof Refused) invocation.refuse(error);
      else if (!(error instanceof Gone)) invocation.fail(error);
    }
  }

  /** Calls the handler as its shape asks, and writes what it returned. */
  async invoke(invocation) {
    const { message, response } = invocation;
    const { config, shape } = this;
    if (this.isTooLong(message)) throw tooLong(config.bodyLimit);
    if (shape.kind === NODE) {
      if (stopping) response.setHeader("connection", "close");
      return shape.call(message, response);
    }
    const hasBody = message.headers["content-length"] !== undefined || message.headers["transfer-encoding"] !== undefined;
    const body = hasBody ? await readBody(message, config.bodyLimit) : Buffer.alloc(0);
    const context = new Context(invocation.id, config);
    let first = new Request(message, body);
    if (shape.kind === EVENT) {
      const events = require("./events.js");
      try {
        first = events.decode(first);
      } catch (error) {
        throw error instanceof events.NotAnEvent ? new Refused(400, error.message) : error;
      }
    }
    const answer = toAnswer(await shape.call(first, context));
    // An error that nobody caught has answered already.
    if (response.headersSent) return undefined;
    return Buffer.isBuffer(answer.body) ? invocation.write(answer) : invocation.stream(answer);
  }

  /** Lets the requests in flight end, for as long as one may take. */
  drain(ended) {
    this.ended = ended;
    this.http.close();
    this.http.closeIdleConnections();
    setTimeout(ended, Math.max(1000, this.config.timeoutMs));
    if (this.inFlight === 0) ended();
  }
}

/** Tells a client whose request is no HTTP what was wrong with it. */
function refuseConnection(error, socket) {
  if (!socket.writable || socket.bytesWritten > 0) return socket.destroy();
  const [status, text] = {
    HPE_HEADER_OVERFLOW: ["431 Request Header Fields Too Large", `the head of the request is longer than ${HEAD_LIMIT_BYTES} bytes`],
    ERR_HTTP_REQUEST_TIMEOUT: ["408 Request Timeout", "the request did not come in time"],
  }[error.code] ?? ["400 Bad Request", `the request is not valid HTTP: ${error.reason ?? error.message}`];
  const head = `HTTP/1.1 ${status}\r\ncontent-type: ${TEXT}\r\ncontent-length: ${text.length + 1}\r\nconnection: close\r\n\r\n`;
  return socket.end(`${head}${text}\n`);
}

/** Writes an error with its stack, each line with the id. */
function logFailure(id, error) {
  const text = require("node:util").inspect(error);
  // The runtime's own frames and node's say nothing to the function's author.
  const own = (line) => /^\s+at /.test(line) && (line.includes(__dirname) || line.includes("node:"));
  const lines = text.split("\n").filter((line) => !own(line));
  try {
    process.stderr.write(lines.map((line) => `[${id}] ${line}\n`).join(""));
  } catch {
    // Nobody reads the log.
  }
}

/** Ends the process with a text that the platform shows to the function's author. */
function fail(text) {
  try {
    fs.writeFileSync(TERMINATION_LOG, text.slice(0, 4096), { flag: fs.constants.O_WRONLY | fs.constants.O_TRUNC });
  } catch {
    // Outside the sandbox there is none.
  }
  process.stderr.write(`${text}\n`);
  END(1);
}

/** Loads the handler and finds out how to call it. */
async function prepare(config) {
  if (!["", "auto", HTTP, EVENT].includes(config.signature)) {
    throw new LoadError(`signature ${config.signature} is not one of auto, http, cloudevent, which JavaScript has`);
  }
  const { file, handler } = await load(config.code, config.handler);
  // Fastify's way to say that its plugins are loaded.
  if (typeof handler?.routing === "function") await handler.ready();
  const shape = shapeOf(handler, config.signature);
  if (!shape) throw new LoadError(`${file}: the handler is of type ${typeof handler} and cannot be called`);
  return shape;
}

/** Serves until SIGTERM or SIGINT. */
async function main() {
  const config = configOf(process.env);
  let server;
  const stop = () => {
    if (stopping) return;
    stopping = true;
    if (server) server.drain(() => END(0));
    else END(0);
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  process.exit = (code) => {
    throw new Exit(code);
  };
  const uncaught = (error) => {
    if (!server) return fail(explain(error, config.code, config.code));
    // What a function that stops by itself would do at SIGTERM: the requests in flight come first.
    if (stopping && error instanceof Exit) return undefined;
    const invocation = server.current.getStore();
    return invocation ? invocation.fail(error) : logFailure("uncaught", error);
  };
  process.on("uncaughtException", uncaught);
  process.on("unhandledRejection", uncaught);
  // Nothing is left that could wake the code up: a module that awaits for ever.
  process.on("beforeExit", () => {
    if (!server) fail("the code waits for something that never comes, and so never finishes to load");
  });
  try {
    const shape = await prepare(config);
    server = new Server(config, shape);
  } catch (error) {
    return fail(error instanceof LoadError ? error.message : explain(error, config.code, config.code));
  }
  try {
    await server.listen();
  } catch (error) {
    fail(`cannot listen on port ${config.port}: ${error.message}`);
  }
  return undefined;
}

module.exports = { configOf, main };
