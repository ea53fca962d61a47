// Started as `node boot.js`. Old versions of node get this far, and can say so.
var major = Number(process.versions.node.split(".")[0]);
if (major < 18) {
  var text = "Node.js " + process.versions.node + " is too old for functions: install 18 or newer on this machine";
  try {
    require("fs").writeFileSync("/dev/termination-log", text, { flag: 1 | 512 /* O_WRONLY | O_TRUNC */ });
  } catch (error) {
    // Outside the sandbox there is none.
  }
  console.error(text);
  process.exit(1);
}
require("./colibri-runtime/server.js").main();
