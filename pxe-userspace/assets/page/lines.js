// Consoles and logs: lines that arrive at the end of a list.

// More would only cost memory: the whole console is had by `bridgehead console`.
const LINES_MAX = 1000;

export class Screens {
  #lists = new Map();

  constructor() {
    for (const list of document.querySelectorAll("[data-screen]")) {
      this.#lists.set(list.dataset.screen, list);
      list.scrollTop = list.scrollHeight;
    }
  }

  // The last lines that the server has, in place of those that are shown.
  replace(said) {
    this.#change(said, (list) => list.replaceChildren(...said.lines.map(line)));
  }

  add(said) {
    this.#change(said, (list) => {
      if (list.dataset.boot !== said.boot) list.replaceChildren();
      list.append(...said.lines.map(line));
      while (list.childElementCount > LINES_MAX) list.firstElementChild.remove();
    });
  }

  #change(said, change) {
    const list = this.#lists.get(said.of);
    if (list === undefined) return;
    // Who reads further up is left there.
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    change(list);
    list.dataset.boot = said.boot;
    const none = list.childElementCount === 0;
    list.toggleAttribute("data-none", none);
    document.getElementById(`${said.of}-none`).toggleAttribute("data-none", !none);
    if (follows) list.scrollTop = list.scrollHeight;
  }
}

function line([uptime, from, text]) {
  const item = document.createElement("div");
  const time = document.createElement("span");
  time.className = "t";
  time.textContent = uptime;
  item.dataset.from = from;
  item.append(time, ` ${text}`);
  return item;
}
