// Finds the handler, and says in one clear text what is wrong where that fails.
"use strict";

const fs = require("node:fs");

const { nodeListener } = require("./shape.js");

const DEFAULT_HANDLER = "index.handle";
const EXTENSIONS = [".mjs", ".js", ".cjs"];

/** The code cannot be loaded; the text is for the person who wrote it. */
class LoadError extends Error {}

/** The code called `process.exit`. */
class Exit extends Error {
  constructor(code) {
    super(`the code ended the process with exit(${code ?? process.exitCode ?? 0})`);
  }
}

/** What `handler` (`module.name`, slashes or dots for folders) names in the folder `code`, and the file it is in. */
async function load(code, handler) {
  const { file, name } = find(code, handler);
  let exported;
  try {
    exported = await evaluate(code, file);
  } catch (error) {
    throw new LoadError(explain(error, code, file));
  }
  return { file: short(file, code), handler: pick(exported, name, handler, short(file, code)) };
}

/** The module's file and the name of what it exports. */
function find(code, handler) {
  if (!handler) {
    const file = existing(code, "index") ?? mainOf(code) ?? existing(code, "main");
    if (file) return { file, name: "handle" };
    throw new LoadError(
      `the function's code has no index.mjs, index.js, main.mjs or main.js, nor a package.json that names its main file; it has: ${listing(code)}`,
    );
  }
  const dot = handler.lastIndexOf(".");
  const [module, name] = [handler.slice(0, Math.max(dot, 0)), handler.slice(dot + 1)];
  if (!module || !name) {
    throw new LoadError(`handler ${handler} is not of the form module.function, such as ${DEFAULT_HANDLER}`);
  }
  const file = existing(code, module) ?? existing(code, module.replaceAll(".", "/"));
  if (file) return { file, name };
  throw new LoadError(
    `handler ${handler} needs ${module}.mjs or ${module}.js, which the function's code does not have; it has: ${listing(code)}`,
  );
}

function existing(code, module) {
  const path = `${code}/${module}`;
  const candidates = [...EXTENSIONS.map((extension) => path + extension), ...EXTENSIONS.map((e) => `${path}/index${e}`)];
  return candidates.find((file) => fs.statSync(file, { throwIfNoEntry: false })?.isFile());
}

/** The file that the code's `package.json` names as its main one. */
function mainOf(code) {
  const { main } = packageOf(code);
  if (typeof main !== "string") return undefined;
  const path = `${code}/${main.replace(/^\.\//, "")}`;
  return fs.statSync(path, { throwIfNoEntry: false })?.isFile() ? path : existing(code, main.replace(/^\.\//, ""));
}

function packageOf(folder) {
  const path = `${folder}/package.json`;
  let text;
  try {
    text = fs.readFileSync(path, "utf8");
  } catch {
    return {};
  }
  try {
    return JSON.parse(text) ?? {};
  } catch (error) {
    throw new LoadError(`package.json is not JSON: ${error.message}`);
  }
}

/** What the module exports. `require` starts sooner than `import`, and in newer versions of node takes modules too. */
async function evaluate(code, file) {
  if (!process.features.require_module && isModule(code, file)) return importFile(file);
  try {
    return require(file);
  } catch (error) {
    // A module that awaits: node says so before it runs.
    if (error.code === "ERR_REQUIRE_ASYNC_MODULE") return importFile(file);
    throw error;
  }
}

function importFile(file) {
  return import(`file://${encodeURI(file).replace(/[?#]/g, encodeURIComponent)}`);
}

/** Whether a file is a module by its name or its package. */
function isModule(code, file) {
  if (!file.endsWith(".js")) return file.endsWith(".mjs");
  for (let folder = parent(file); folder.length >= code.length; folder = parent(folder)) {
    if (fs.existsSync(`${folder}/package.json`)) return packageOf(folder).type === "module";
  }
  return false;
}

/** The handler among what a module exports. */
function pick(exported, name, handler, file) {
  const inside = exported?.default;
  const wholes = [inside?.default, inside, exported];
  // An Express app has a method `handle`, which is not the handler: the app is.
  const app = wholes.find((whole) => nodeListener(whole) && whole[name] !== undefined);
  if (app) return app;
  // The default of CommonJS is all that the module exports.
  const found = exported?.[name] ?? inside?.[name] ?? (name === "default" ? exported : undefined);
  if (found !== undefined) return found;
  // Without a name for it, a module that is a handler or an application is taken as one.
  if (!handler) {
    for (const whole of wholes) {
      if (typeof whole === "function" || typeof whole?.listen === "function") return whole;
    }
  }
  const wanted = handler || DEFAULT_HANDLER;
  throw new LoadError(`${file}: has no ${name}, which handler ${wanted} names; it exports: ${names(exported)}`);
}

function names(exported) {
  const all = new Set([...Object.keys(exported ?? {}), ...Object.keys(exported?.default ?? {})]);
  all.delete("default");
  for (const made of ["module.exports", "__esModule"]) all.delete(made);
  const listed = [...all].slice(0, 10).join(", ");
  return listed || (exported?.default === undefined ? "nothing" : "a default");
}

/** `file:line: Type: message`, and for a syntax error the line and the place in it. */
function explain(error, code, file) {
  if (!(error instanceof Error)) return `${short(file, code)}:1: the code threw ${inspect(error)} while it was loaded`;
  const found = placeInStack(error, code);
  if (error instanceof Exit) return `${found ?? `${short(file, code)}:1`}: ${error.message} while it was loaded`;
  const arrow = error instanceof SyntaxError ? arrowIn(error.stack) ?? (found ? undefined : askNode(file)) : undefined;
  const importer = /imported from (?:file:\/\/)?(\/[^\n]*)$/m.exec(error.message)?.[1] ?? file;
  const place = arrow ? `${short(arrow.file, code)}:${arrow.line}` : found ?? `${short(importer, code)}:${lineOfImport(importer, error)}`;
  const message = firstLine(error.message).replace(/ imported from .*$/, "").replaceAll(`${code}/`, "");
  return `${place}: ${error.name}: ${message}${hint(error)}${arrow ? `\n${arrow.source}` : ""}`;
}

/** What can be done about it. */
function hint(error) {
  const isSyntax = error instanceof SyntaxError;
  if (isSyntax && /import statement outside a module|Unexpected token 'export'|'import.meta' outside/.test(error.message)) {
    return ' (for import and export name the file .mjs, or write "type": "module" into package.json)';
  }
  if (isSyntax && /does not provide an export named/.test(error.message)) return "";
  const missing = missingModule(error);
  if (!missing) return "";
  const isFile = /^[./]|^file:|^node:/.test(missing);
  if (isFile) return "";
  const name = missing.split("/").slice(0, missing.startsWith("@") ? 2 : 1).join("/");
  return ` (put it beside the code: npm install ${name})`;
}

function missingModule(error) {
  if (error.code !== "MODULE_NOT_FOUND" && error.code !== "ERR_MODULE_NOT_FOUND") return undefined;
  return /Cannot find (?:module|package) '([^']+)'/.exec(error.message)?.[1];
}

/** Where a syntax error is: node writes `file:line`, the line and a marker. */
function arrowIn(text) {
  const found = /^(?:file:\/\/)?(\/[^\n]*):(\d+)\n([^\n]*)\n([^\n]*\^[^\n]*)\n/.exec(text ?? "");
  if (!found) return undefined;
  const [, file, line, source, marker] = found;
  const indent = source.length - source.trimStart().length;
  return { file: decode(file), line, source: `    ${source.trim()}\n    ${marker.slice(indent)}`.trimEnd() };
}

/** The place of a syntax error that `import` does not tell: node tells it of the file that it was started with. */
function askNode(file) {
  const { spawnSync } = require("node:child_process");
  const options = { encoding: "utf8", timeout: 10_000, stdio: ["ignore", "ignore", "pipe"] };
  return arrowIn(spawnSync(process.execPath, ["--no-warnings", file], options).stderr);
}

/** Innermost place of the stack that is in the function's own code. */
function placeInStack(error, code) {
  for (const line of (error.stack ?? "").split("\n")) {
    const found = /(?:file:\/\/)?(\/[^():]*):(\d+):\d+\)?$/.exec(line);
    if (found && decode(found[1]).startsWith(`${code}/`)) return `${short(decode(found[1]), code)}:${found[2]}`;
  }
  return undefined;
}

/** A static import is resolved before any code runs, so that no stack names its line. */
function lineOfImport(file, error) {
  const path = /Cannot find (?:module|package) '([^']+)'/.exec(error.message)?.[1];
  const wanted = path && [path, path.split("/").pop()];
  try {
    const lines = fs.readFileSync(file, "utf8").split("\n");
    const at = lines.findIndex((line) => /\b(import|from|require)\b/.test(line) && wanted?.some((name) => line.includes(name)));
    return Math.max(at, 0) + 1;
  } catch {
    return 1;
  }
}

function decode(path) {
  return path.includes("%") ? require("node:querystring").unescape(path) : path;
}

function firstLine(text) {
  return String(text).split("\n", 1)[0];
}

function inspect(value) {
  return require("node:util").inspect(value, { breakLength: Infinity });
}

function short(path, code) {
  return path.startsWith(`${code}/`) ? path.slice(code.length + 1) : path;
}

function parent(path) {
  return path.slice(0, path.lastIndexOf("/"));
}

function listing(code) {
  let names;
  try {
    names = fs.readdirSync(code).sort();
  } catch (error) {
    return `nothing (${error.message})`;
  }
  return (names.slice(0, 10).join(", ") || "nothing") + (names.length > 10 ? ", ..." : "");
}

module.exports = { Exit, LoadError, explain, load };
