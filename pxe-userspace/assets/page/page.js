// Where it begins. Without it, pages can be read; with it, they stay up to date and their forms do something.

import { start } from "./live.js";
import { listen } from "./forms.js";

document.documentElement.classList.add("scripted");
start();
listen();
