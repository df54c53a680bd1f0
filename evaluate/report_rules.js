// Rules asked of clips: the same questions, in the same order, as filters/decide.py.
const data = JSON.parse(document.getElementById("data").textContent);
const columns = data.columns;
const count = data.num_shown;

// The value of a clip: a number, a word, or null where unknown.
function valueOf(name, i) {
  const column = columns[name];
  if (!column) return null;
  const value = column.values[i];
  return value !== null && column.words ? column.words[value] : value;
}

const isText = (name) => Boolean(columns[name] && columns[name].words);

// Ranges by source; "" holds the general ones. A rule that a source shares with the general ones is one object.
const profiles = {};
function loadRules() {
  for (const key of Object.keys(profiles)) delete profiles[key];
  const general = {};
  for (const [source, rules] of Object.entries(data.rules.by_source)) {
    profiles[source] = rules.map((given) => {
      const rule = { ...given, among: [...given.among], on: true };
      const known = general[rule.column];
      if (source === "") general[rule.column] = rule;
      else if (known && JSON.stringify(known) === JSON.stringify(rule)) return known;
      return rule;
    });
  }
}
loadRules();

const profileOf = Array.from({ length: count }, (_, i) => {
  const source = valueOf("source", i);
  return source !== null && Object.hasOwn(data.rules.by_source, source) ? source : "";
});

// Why a rule is broken: "unknown", "below", "above", "other"; null where it is not.
function broken(rule, i) {
  const values = (columns[rule.column] || {}).values;
  const value = values ? values[i] : null;
  if (value === null || value === undefined) return "unknown";
  if (rule.pattern) return data.passes[rule.column][i] ? null : "other";
  if (isText(rule.column)) return rule.among.includes(columns[rule.column].words[value]) ? null : "other";
  if (rule.min !== null && value < rule.min) return "below";
  return rule.max !== null && value > rule.max ? "above" : null;
}

function reasonText(rule, how) {
  const about = rule.reason ? rule.reason + ": " : "";
  if (how === "unknown") return `${about}${rule.column} unknown`;
  if (how === "other") return `${about}${rule.column} not ${rule.pattern ? "of the wanted kind" : rule.among.join(" or ")}`;
  return `${about}${rule.column} ${how} ${number(how === "below" ? rule.min : rule.max)}`;
}

const number = (value) => (value === null ? "" : String(Number(Number(value).toPrecision(4))));

function rangeText(rule) {
  if (rule.pattern) return "of the wanted kind";
  if (isText(rule.column)) return rule.among.join(" or ");
  if (rule.min === null && rule.max === null) return "known";
  if (rule.min === null) return "<= " + number(rule.max);
  return rule.max === null ? ">= " + number(rule.min) : `${number(rule.min)} to ${number(rule.max)}`;
}

// Per clip: the first broken rule and how; refreshed by judgeAll.
const verdicts = { rule: new Array(count).fill(null), how: new Array(count).fill(null), numKept: 0 };

function judgeAll() {
  verdicts.numKept = 0;
  for (let i = 0; i < count; i++) {
    verdicts.rule[i] = verdicts.how[i] = null;
    for (const rule of profiles[profileOf[i]]) {
      const how = rule.on ? broken(rule, i) : null;
      if (how !== null) {
        verdicts.rule[i] = rule;
        verdicts.how[i] = how;
        break;
      }
    }
    if (verdicts.rule[i] === null) verdicts.numKept++;
  }
}

// Every column that a rule is about, in the order of the general rules, then those of sources alone.
function ruleColumns() {
  const found = new Set();
  for (const rules of Object.values(profiles)) for (const rule of rules) found.add(rule.column);
  return [...found];
}

// The rules as `worldline decide --rules FILE.toml` reads them.
function rulesToml() {
  const lines = [`name = "own"`, `about = ${JSON.stringify("from the report of " + data.dataset)}`];
  const table = (head, rule) => {
    lines.push("", `[[${head}]]`, `column = ${JSON.stringify(rule.column)}`);
    if (rule.pattern) lines.push(`pattern = ${JSON.stringify(rule.pattern)}`);
    else if (isText(rule.column)) lines.push(`among = ${JSON.stringify(rule.among)}`);
    if (rule.min !== null) lines.push(`min = ${rule.min}`);
    if (rule.max !== null) lines.push(`max = ${rule.max}`);
    if (rule.reason) lines.push(`reason = ${JSON.stringify(rule.reason)}`);
  };
  const isAsked = (rule) => rule.on && (rule.pattern || rule.among.length || rule.min !== null || rule.max !== null);
  for (const rule of profiles[""]) if (isAsked(rule)) table("rules", rule);
  for (const [source, rules] of Object.entries(profiles)) {
    if (source === "") continue;
    const own = rules.filter((rule) => isAsked(rule) && !profiles[""].includes(rule));
    for (const rule of own) table(`by_source.${JSON.stringify(source)}`, rule);
  }
  return lines.join("\n") + "\n";
}
