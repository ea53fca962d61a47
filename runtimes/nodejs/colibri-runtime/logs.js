// Loggers that name the invocation. Loaded only when a handler asks for one.
"use strict";

const { formatWithOptions } = require("node:util");

/** The function's logger: one line for each message, with level, function and id before it. */
function logger(name, invocationId) {
  const write = (level) => (...values) => {
    const text = formatWithOptions({ breakLength: Infinity }, ...values);
    process.stderr.write(`${level} ${name || "function"} [${invocationId}] ${text}\n`);
  };
  return { debug: write("DEBUG"), info: write("INFO"), warn: write("WARNING"), error: write("ERROR") };
}

module.exports = { logger };
