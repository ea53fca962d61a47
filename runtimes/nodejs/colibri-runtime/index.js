// What a function may import: `import { Event, Response } from "colibri-runtime"`.
"use strict";

const { Event, Response } = require("./message.js");

module.exports = { Event, Response };
