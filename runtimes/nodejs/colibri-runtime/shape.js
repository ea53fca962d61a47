// What a handler is: how it wants to be called.
"use strict";

const [HTTP, EVENT, NODE] = ["http", "cloudevent", "node"];

/** `{ kind, call }`: `call(first, context)` for HTTP and events, `call(message, response)` for node's own form. */
function shapeOf(handler, signature) {
  const server = nodeListener(handler);
  if (server && (signature || "auto") === "auto") return { kind: NODE, call: server };
  if (typeof handler !== "function") return undefined;
  const names = parameters(handler);
  const kind = !signature || signature === "auto" ? guess(names) : signature;
  if (kind === NODE) return { kind, call: handler };
  const contextOnly = names.length === 1 && names[0] === "context";
  return { kind, call: contextOnly ? (_, context) => handler(context) : handler };
}

/** What answers `(request, response)` of `node:http`: an Express, Koa or Fastify app, a server that does not listen. */
function nodeListener(handler) {
  if (typeof handler === "function") {
    return typeof handler.handle === "function" && typeof handler.use === "function" ? handler : undefined;
  }
  if (typeof handler?.callback === "function" && typeof handler.use === "function") return handler.callback();
  if (typeof handler?.routing === "function") return (message, response) => handler.routing(message, response);
  if (typeof handler?.listen === "function" && typeof handler.emit === "function") {
    return (message, response) => void handler.emit("request", message, response);
  }
  return undefined;
}

function guess(names) {
  if (names.length >= 2 && ["res", "response", "reply"].includes(names[1])) return NODE;
  return ["event", "cloudevent", "cloudEvent", "cloud_event"].includes(names[0]) ? EVENT : HTTP;
}

const STRING_OR_COMMENT = /("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`(?:\\.|[^`\\])*`)|\/\*[^]*?\*\/|\/\/[^\n]*/g;

/** Names of the parameters, from the source; what is not a plain name, such as a pattern, is "". */
function parameters(handler) {
  const source = Function.prototype.toString.call(handler);
  const text = source.replace(STRING_OR_COMMENT, (_, string) => (string ? '""' : ""));
  const alone = /^\s*(?:async\s+)?([\p{ID_Start}$_][\p{ID_Continue}$]*)\s*=>/u.exec(text);
  if (alone) return [alone[1]];
  const open = text.indexOf("(");
  if (open < 0) return [];
  const found = [];
  let [depth, start] = [0, open + 1];
  for (let i = open + 1; i < text.length; i++) {
    const c = text[i];
    if ("([{".includes(c)) depth++;
    else if (depth === 0 && (c === "," || c === ")")) {
      const part = text.slice(start, i).trim();
      if (part) found.push(/^[\p{ID_Start}$_][\p{ID_Continue}$]*/u.exec(part)?.[0] ?? "");
      if (c === ")") break;
      start = i + 1;
    } else if (")]}".includes(c)) depth--;
  }
  return found;
}

module.exports = { EVENT, HTTP, NODE, nodeListener, parameters, shapeOf };
