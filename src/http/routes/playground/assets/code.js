// The call of a result as a command for curl and as programs in Python and JavaScript.

/** @typedef {Record<string, any>} Json */

/** @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/**
 * Returns the fields without pictures, which the programs read from files.
 * @param {Json} body
 */
function parts(body) {
  const { image, images, ...rest } = body;
  const fields = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null && value !== undefined));
  const count = Array.isArray(images) ? images.length : 0;
  return { hasImage: image !== undefined, count, fields };
}

/**
 * @param {string} path
 * @param {Json} body
 * @param {string} key whether a key is needed
 * @returns {Record<string, string>} programs by language
 */
export function programs(path, body, key) {
  const url = new URL(path, document.baseURI).href;
  const { hasImage, count, fields } = parts(body);
  return { curl: curl(url, hasImage, count, fields, key), Python: python(url, hasImage, count, fields, key), JavaScript: javascript(url, hasImage, count, fields, key) };
}

/**
 * @param {string} url
 * @param {boolean} hasImage
 * @param {number} count
 * @param {Json} fields
 * @param {string} key
 */
function curl(url, hasImage, count, fields, key) {
  const words = ["curl"];
  if (fields.stream) words.push("-N");
  words.push(quoted(url));
  if (key) words.push("-H 'authorization: Bearer YOUR_KEY'");
  if (!hasImage && count === 0) {
    words.push("-H 'content-type: application/json'", `-d ${quoted(JSON.stringify(fields))}`);
  } else {
    if (hasImage) words.push("-F image=@photo.jpg");
    for (let index = 1; index <= count; index += 1) words.push(`-F images=@photo${index}.jpg`);
    for (const [name, value] of Object.entries(fields)) {
      for (const one of Array.isArray(value) ? value : [value]) words.push(`--form-string ${quoted(`${name}=${one}`)}`);
    }
  }
  return words.join(" \\\n  ");
}

/**
 * @param {any} value
 * @returns {string}
 */
function pythonValue(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${pythonValue(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

/**
 * @param {string} url
 * @param {boolean} hasImage
 * @param {number} count
 * @param {Json} fields
 * @param {string} key
 */
function python(url, hasImage, count, fields, key) {
  const lines = ["import base64, pathlib, requests", ""];
  const file = (/** @type {string} */ name) => `base64.b64encode(pathlib.Path(${name}).read_bytes()).decode()`;
  const given = Object.entries(fields).filter(([name]) => name !== "stream").map(([name, value]) => `    ${JSON.stringify(name)}: ${pythonValue(value)},`);
  lines.push("body = {");
  if (hasImage) lines.push(`    "image": ${file('"photo.jpg"')},`);
  if (count) lines.push(`    "images": [${file("name")} for name in [${Array.from({ length: count }, (_, index) => `"photo${index + 1}.jpg"`).join(", ")}]],`);
  lines.push(...given, "}");
  const headers = key ? ', headers={"authorization": "Bearer YOUR_KEY"}' : "";
  lines.push(`answer = requests.post(${JSON.stringify(url)}, json=body${headers})`, "answer.raise_for_status()", "print(answer.json())");
  return lines.join("\n");
}

/**
 * @param {string} url
 * @param {boolean} hasImage
 * @param {number} count
 * @param {Json} fields
 * @param {string} key
 */
function javascript(url, hasImage, count, fields, key) {
  const lines = ['import { readFile } from "node:fs/promises";', ""];
  const { stream: _, ...given } = fields;
  const file = (/** @type {string} */ name) => `await readFile(${name}, "base64")`;
  lines.push("const body = {");
  if (hasImage) lines.push(`  image: ${file('"photo.jpg"')},`);
  if (count) lines.push(`  images: [${Array.from({ length: count }, (_, index) => file(`"photo${index + 1}.jpg"`)).join(", ")}],`);
  for (const [name, value] of Object.entries(given)) lines.push(`  ${name}: ${JSON.stringify(value)},`);
  lines.push("};");
  const headers = key ? '{ "content-type": "application/json", authorization: "Bearer YOUR_KEY" }' : '{ "content-type": "application/json" }';
  lines.push(`const answer = await fetch(${JSON.stringify(url)}, {`, `  method: "POST", headers: ${headers}, body: JSON.stringify(body),`, "});", "if (!answer.ok) throw new Error(await answer.text());", "console.log(await answer.json());");
  return lines.join("\n");
}
