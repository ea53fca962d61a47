// What a handler is given and what it may return.
"use strict";

const fs = require("node:fs");

/** One HTTP request with its whole body. */
class Request {
  #message;
  #query;

  /** `message` is the `IncomingMessage` that came. */
  constructor(message, body) {
    this.#message = message;
    this.method = message.method;
    this.target = origin(message.url);
    this.params = {};
    this.body = body;
  }

  /** The target up to `?`, as it came. */
  get rawPath() {
    const end = this.target.indexOf("?");
    return end < 0 ? this.target : this.target.slice(0, end);
  }

  /** The target after `?`, as it came. */
  get rawQuery() {
    const end = this.target.indexOf("?");
    return end < 0 ? "" : this.target.slice(end + 1);
  }

  /** The path without percent encoding; a bad escape stays as it is. */
  get path() {
    const path = this.rawPath;
    return path.includes("%") ? require("node:querystring").unescape(path) : path;
  }

  /** The query's names and values; of a repeated name the first value. */
  get query() {
    if (this.#query === undefined) {
      this.#query = Object.create(null);
      for (const [name, value] of new URLSearchParams(this.rawQuery)) this.#query[name] ??= value;
    }
    return this.#query;
  }

  /** Every value of that name in the query. */
  queryAll(name) {
    return new URLSearchParams(this.rawQuery).getAll(name);
  }

  /** Header fields by their names in lower case; repeated ones are joined with a comma. */
  get headers() {
    return this.#message.headers;
  }

  /** A header field by its name in any case. */
  header(name) {
    return this.#message.headers[name.toLowerCase()];
  }

  /** Every value of that header field. */
  headerAll(name) {
    const [wanted, raw, values] = [name.toLowerCase(), this.#message.rawHeaders, []];
    for (let i = 0; i < raw.length; i += 2) if (raw[i].toLowerCase() === wanted) values.push(raw[i + 1]);
    return values;
  }

  /** Address of the client's end of the connection. */
  get client() {
    return this.#message.socket.remoteAddress?.replace(/^::ffff:/, "");
  }

  /** The body as text. */
  text() {
    return this.body.toString("utf8");
  }

  /** The body as JSON. */
  json() {
    return JSON.parse(this.text());
  }
}

/** The target without scheme and host, which a client may send. */
function origin(target) {
  const found = /^https?:\/\/[^/?]*/i.exec(target);
  if (!found) return target;
  const rest = target.slice(found[0].length);
  return rest.startsWith("/") ? rest : `/${rest}`;
}

/** An answer with its status and headers. */
class Response {
  constructor(body, status = 200, headers = {}) {
    this.body = body;
    this.status = status;
    this.headers = headers;
  }
}

/** A CloudEvent 1.0. Attributes that are not of the standard are in `extensions`. */
class Event {
  static STANDARD = ["type", "source", "id", "datacontenttype", "subject", "time", "dataschema", "specversion"];

  constructor({ type, source, id, data, datacontenttype, subject, time, dataschema, specversion = "1.0", ...more }) {
    this.type = type;
    this.source = source;
    this.id = id || newId();
    this.data = data;
    this.datacontenttype = datacontenttype;
    this.subject = subject;
    this.time = time;
    this.dataschema = dataschema;
    this.specversion = specversion;
    this.extensions = more;
  }

  /** An attribute, of the standard or not. */
  get(name) {
    return Event.STANDARD.includes(name) ? this[name] : this.extensions[name];
  }
}

/** What a handler may know of its invocation. */
class Context {
  #logger;

  constructor(invocationId, config) {
    this.invocationId = invocationId;
    this.deadline = Date.now() + config.timeoutMs;
    this.function = config.function;
    this.namespace = config.namespace;
    this.version = config.version;
  }

  /** A logger whose lines carry the invocation's id. */
  get logger() {
    this.#logger ??= require("./logs.js").logger(this.function, this.invocationId);
    return this.#logger;
  }

  /** Milliseconds until the deadline; never negative. */
  remaining() {
    return Math.max(0, this.deadline - Date.now());
  }
}

/** A fresh id of 32 hexadecimal digits. Loading `node:crypto` for it would cost milliseconds of a cold start. */
function newId() {
  const bytes = Buffer.allocUnsafe(16);
  const source = fs.openSync("/dev/urandom");
  fs.readSync(source, bytes);
  fs.closeSync(source);
  return bytes.toString("hex");
}

module.exports = { Context, Event, Request, Response, newId };
