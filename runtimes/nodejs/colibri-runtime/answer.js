// From what a handler returned to status, headers and body.
"use strict";

const { Event, Response } = require("./message.js");

const TEXT = "text/plain; charset=utf-8";

/** `{ status, headers, body }`: headers are pairs; the body is bytes or an iterator, async or not. */
function toAnswer(result) {
  let [status, headers] = [200, []];
  if (isPlainResponse(result)) {
    status = result.status ?? result.statusCode;
    [headers, result] = [pairs(result.headers), result.body];
  } else if (isForeignResponse(result)) {
    [status, headers, result] = [result.status, pairs(result.headers), result.body ?? Buffer.alloc(0)];
  }
  if (!Number.isInteger(status) || status < 200 || status > 999) {
    throw new RangeError(`the handler returned the status ${status}; it must be from 200 to 999`);
  }
  if (result === undefined || result === null) {
    return { status: status === 200 ? 204 : status, headers, body: Buffer.alloc(0) };
  }
  if (isEvent(result)) {
    const encoded = require("./events.js").encode(result);
    return { status, headers: [...headers, ...encoded.headers], body: encoded.body };
  }
  if (typeof result === "string") return { status, headers: typed(headers, TEXT), body: Buffer.from(result) };
  const bytes = asBytes(result);
  if (bytes) return { status, headers: typed(headers, "application/octet-stream"), body: bytes };
  const iterator = iteratorOf(result);
  if (iterator) return { status, headers: typed(headers, TEXT), body: iterator };
  return { status, headers: typed(headers, "application/json"), body: json(result) };
}

/** Our own answer, or an object with a status and nothing that an answer has not. */
function isPlainResponse(result) {
  if (result instanceof Response) return true;
  if (typeof result !== "object" || result === null || Object.getPrototypeOf(result) !== Object.prototype) return false;
  const known = ["status", "statusCode", "headers", "body"];
  const names = Object.keys(result);
  const status = Number.isInteger(result.status) !== Number.isInteger(result.statusCode);
  return status && ("body" in result || "headers" in result) && names.every((name) => known.includes(name));
}

/** The answer of the web's `fetch`, whoever implements it. */
function isForeignResponse(result) {
  return typeof result === "object" && typeof result?.arrayBuffer === "function" && typeof result.headers?.forEach === "function";
}

/** Our own event, or one of a library for CloudEvents. */
function isEvent(result) {
  if (result instanceof Event) return true;
  if (typeof result !== "object" || Object.getPrototypeOf(result) === Object.prototype) return false;
  return ["specversion", "type", "source", "id"].every((name) => typeof result[name] === "string");
}

/** Bytes as a Buffer over the same memory; undefined for anything else. */
function asBytes(value) {
  if (Buffer.isBuffer(value)) return value;
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  if (value instanceof ArrayBuffer || value instanceof SharedArrayBuffer) return Buffer.from(value);
  return undefined;
}

/** The iterator of what is streamed: generators, node's and the web's streams, not collections. */
function iteratorOf(value) {
  if (typeof value !== "object" || value === null) return undefined;
  if (typeof value[Symbol.asyncIterator] === "function") return value[Symbol.asyncIterator]();
  const isGenerator = typeof value.next === "function" && typeof value[Symbol.iterator] === "function";
  return isGenerator ? value[Symbol.iterator]() : undefined;
}

function json(result) {
  let text;
  try {
    text = JSON.stringify(result);
  } catch (error) {
    throw new TypeError(`the handler returned ${nameOf(result)}, which is no text, bytes or JSON: ${error.message}`);
  }
  if (text === undefined) {
    throw new TypeError(`the handler returned ${nameOf(result)}, which is no text, bytes or JSON`);
  }
  return Buffer.from(`${text}\n`);
}

function nameOf(value) {
  return typeof value === "object" ? `a ${value.constructor?.name ?? "object"}` : `a ${typeof value}`;
}

/** Header pairs of an object, a Map, a list of pairs or the web's Headers; a list as value is a repeated field. */
function pairs(headers) {
  if (headers === undefined || headers === null) return [];
  const entries = typeof headers[Symbol.iterator] === "function" ? [...headers] : Object.entries(headers);
  const each = ([name, value]) => (Array.isArray(value) ? value.map((one) => [name, String(one)]) : [[name, String(value)]]);
  return entries.flatMap(each);
}

function typed(headers, kind) {
  const has = headers.some(([name]) => name.toLowerCase() === "content-type");
  return has ? headers : [...headers, ["content-type", kind]];
}

module.exports = { asBytes, toAnswer };
