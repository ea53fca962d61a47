// CloudEvents 1.0 over HTTP, binary and structured mode.
//
// Source: CloudEvents HTTP protocol binding 1.0.2, sections 3.1 and 3.2.
"use strict";

const { Event } = require("./message.js");

const STRUCTURED = "application/cloudevents+json";
const PREFIX = "ce-";

/** The request holds no event; the text says what is missing. */
class NotAnEvent extends Error {}

/** The event in a request. */
function decode(request) {
  const contentType = request.header("content-type") ?? "";
  const media = mediaOf(contentType);
  if (media.startsWith("application/cloudevents-batch")) {
    throw new NotAnEvent("batches of events are not taken; send the events one by one");
  }
  if (media.startsWith("application/cloudevents")) {
    if (media !== STRUCTURED) throw new NotAnEvent(`the structured format ${media} is not known; use ${STRUCTURED}`);
    return structured(request.body);
  }
  return binary(request, contentType);
}

function binary(request, contentType) {
  const attributes = {};
  for (const [name, value] of Object.entries(request.headers)) {
    if (name.startsWith(PREFIX)) attributes[name.slice(PREFIX.length)] = unquote(value);
  }
  check(attributes, "header ce-");
  delete attributes.data;
  if (contentType) attributes.datacontenttype = contentType;
  let data = request.body.length > 0 ? request.body : null;
  if (data && isJson(contentType)) data = parse(data, "the data");
  else if (data && contentType.toLowerCase().startsWith("text/")) data = data.toString("utf8");
  return new Event({ ...attributes, data });
}

function structured(body) {
  const members = parse(body, "the event");
  if (typeof members !== "object" || members === null || Array.isArray(members)) {
    throw new NotAnEvent("a structured event must be a JSON object");
  }
  const given = Object.entries(members).filter(([, value]) => value !== null);
  const attributes = Object.fromEntries(given.map(([name, value]) => [name.toLowerCase(), value]));
  check(attributes, "member ");
  const { data_base64: encoded, data = null, ...rest } = attributes;
  if (encoded === undefined) return new Event({ ...rest, data });
  if (typeof encoded !== "string" || !/^[A-Za-z0-9+/]*={0,2}$/.test(encoded)) {
    throw new NotAnEvent("data_base64 is not base64");
  }
  return new Event({ ...rest, data: Buffer.from(encoded, "base64") });
}

function check(attributes, what) {
  const missing = ["id", "source", "specversion", "type"].filter((name) => !attributes[name]);
  if (missing.length > 0) {
    const names = missing.map((name) => what + name).join(", ");
    throw new NotAnEvent(`this function takes CloudEvents, and the request has no ${names}`);
  }
  if (attributes.specversion !== "1.0") {
    throw new NotAnEvent(`CloudEvents ${attributes.specversion} are not known, only 1.0`);
  }
}

function parse(data, what) {
  try {
    return JSON.parse(data.toString("utf8"));
  } catch (error) {
    throw new NotAnEvent(`${what} is not JSON: ${error.message}`);
  }
}

function mediaOf(contentType) {
  return contentType.split(";")[0].trim().toLowerCase();
}

function isJson(contentType) {
  const media = mediaOf(contentType);
  return media === "application/json" || media.endsWith("+json");
}

/** Headers and body of an event in binary mode. Events of libraries have their extensions beside the rest. */
function encode(event) {
  let { data, datacontenttype } = event;
  let body;
  if (data === undefined || data === null) body = Buffer.alloc(0);
  else if (ArrayBuffer.isView(data)) body = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  else if (typeof data === "string" && !(datacontenttype && isJson(datacontenttype))) {
    [body, datacontenttype] = [Buffer.from(data), datacontenttype ?? "text/plain; charset=utf-8"];
  } else {
    [body, datacontenttype] = [Buffer.from(JSON.stringify(data)), datacontenttype ?? "application/json"];
  }
  const own = event instanceof Event ? event.extensions : extensionsOf(event);
  const names = Event.STANDARD.filter((name) => name !== "datacontenttype");
  const attributes = [...names.map((name) => [name, event[name]]), ...Object.entries(own)];
  const given = attributes.filter(([, value]) => value !== undefined && value !== null);
  const headers = given.map(([name, value]) => [PREFIX + name, quote(String(value))]);
  if (datacontenttype) headers.push(["content-type", datacontenttype]);
  return { headers, body };
}

function extensionsOf(event) {
  const isExtension = ([name, value]) =>
    /^[a-z0-9]+$/.test(name) && !Event.STANDARD.includes(name) && name !== "data" && typeof value !== "object";
  return Object.fromEntries(Object.entries(event).filter(isExtension));
}

/** Percent encoding of what a CloudEvents header must not hold as it is (section 3.1.3.2). */
function quote(text) {
  return Buffer.from(text).reduce((out, byte) => {
    const keep = byte > 0x20 && byte < 0x7f && byte !== 0x22 && byte !== 0x25;
    return out + (keep ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`);
  }, "");
}

/** Undoes percent encoding; a bad escape stays as it is. */
function unquote(text) {
  return text.includes("%") ? require("node:querystring").unescape(text) : text;
}

module.exports = { NotAnEvent, decode, encode };
