// The pictures of this tab: dropped, pasted, chosen, taken by the camera, or one of the demo scenes.

import { byId, h, megabytes } from "./dom.js";

/** @typedef {{name: string, scene: string | null, blob: Blob, url: string, serverId: string | null, width: number, height: number}} Picture */

/** @type {Picture[]} */
const pictures = [];
/** @type {Picture | null} */
let current = null;
let maxBytes = Infinity;
let maxPixels = Infinity;
/** @type {((picture: Picture | null) => void)[]} */
const listeners = [];
/** @type {(text: string) => void} */
let complain = () => {};

/** @type {[string, string][]} */
const SCENES = [
  ["two-cats.png", "Two cats"],
  ["cat-and-dog.png", "A cat and a dog"],
  ["octopus-and-guitar.png", "An octopus and a guitar"],
  ["rocket.png", "A rocket"],
  ["whale.png", "A whale"],
];

/** Returns all pictures. */
export function all() {
  return pictures;
}

/** Returns the picture that is shown. */
export function shown() {
  return current;
}

/** @type {() => void} */
let afterAdding = () => {};

/** @param {() => void} listener called after the user has added pictures */
export function whenAdded(listener) {
  afterAdding = listener;
}

/** @param {(picture: Picture | null) => void} listener called when another picture is shown */
export function onChange(listener) {
  listeners.push(listener);
}

/**
 * Tells the limits of the server before anything is uploaded.
 * @param {Record<string, any>} limits
 */
export function setLimits(limits) {
  maxBytes = limits.max_image_bytes;
  maxPixels = limits.max_image_pixels;
  byId("limits", HTMLElement).textContent =
    `JPEG, PNG, WebP, GIF or BMP, up to ${megabytes(maxBytes)} and ${Math.round(maxPixels / 1e6)} megapixels each.`;
}

/**
 * Returns the value for the field `image`: the id by which the server knows the picture, or its data.
 * @param {Picture} picture
 * @returns {Promise<string>}
 */
export async function imageValue(picture) {
  if (picture.serverId) return picture.serverId;
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.addEventListener("load", () => resolve(String(reader.result)));
    reader.addEventListener("error", () => reject(new Error(`${picture.name} cannot be read`)));
    reader.readAsDataURL(picture.blob);
  });
}

/**
 * Adds a picture and shows it, if it is within the limits.
 * @param {Blob} blob
 * @param {string} name
 * @param {string | null} [scene] the file of a demo scene
 */
async function add(blob, name, scene = null) {
  complain("");
  if (blob.size > maxBytes) {
    complain(`${name} has ${megabytes(blob.size)}; this server takes up to ${megabytes(maxBytes)}.`);
    return;
  }
  const url = URL.createObjectURL(blob);
  /** @type {Picture} */
  const picture = { name, scene, blob, url, serverId: null, width: 0, height: 0 };
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    picture.width = image.naturalWidth;
    picture.height = image.naturalHeight;
  } catch {
    // The server may know a format that this browser does not.
  }
  if (picture.width * picture.height > maxPixels) {
    URL.revokeObjectURL(url);
    complain(`${name} has ${picture.width} x ${picture.height} pixels; this server takes up to ${maxPixels} in all.`);
    return;
  }
  pictures.push(picture);
  show(picture);
}

/** @param {Picture | null} picture */
export function show(picture) {
  endCamera();
  current = picture;
  const stage = byId("stage", HTMLElement);
  stage.hidden = !picture;
  byId("hint", HTMLElement).hidden = Boolean(picture);
  const image = byId("shown", HTMLImageElement);
  if (picture) {
    image.src = picture.url;
    image.alt = `The picture ${picture.name}`;
  } else {
    image.removeAttribute("src");
    image.alt = "";
  }
  drawStrip();
  for (const listener of listeners) listener(picture);
}

/** @param {Picture} picture */
function remove(picture) {
  const index = pictures.indexOf(picture);
  pictures.splice(index, 1);
  URL.revokeObjectURL(picture.url);
  show(current === picture ? (pictures[Math.max(0, index - 1)] ?? null) : current);
  byId("file", HTMLInputElement).focus();
}

/** @type {Map<Picture, {item: HTMLElement, button: HTMLElement}>} */
const strip = new Map();

/** Adds, removes and marks single pictures, so that the focus stays where it is. */
function drawStrip() {
  for (const [picture, { item }] of strip) {
    if (pictures.includes(picture)) continue;
    item.remove();
    strip.delete(picture);
  }
  for (const picture of pictures) {
    let known = strip.get(picture);
    if (!known) {
      const image = h("img", { src: picture.url, alt: "" });
      const button = h("button", { type: "button", class: "thumb", "aria-label": `Show ${picture.name}`, onclick: () => show(picture) }, image);
      const close = h("button", { type: "button", class: "remove", "aria-label": `Remove ${picture.name}`, onclick: () => remove(picture) }, "×");
      known = { item: h("li", {}, button, close), button };
      strip.set(picture, known);
      byId("strip", HTMLElement).append(known.item);
    }
    known.button.setAttribute("aria-pressed", picture === current ? "true" : "false");
  }
}

/** @param {FileList | File[] | null | undefined} files */
async function addFiles(files) {
  const before = pictures.length;
  for (const file of Array.from(files ?? [])) {
    if (file.type.startsWith("image/") || /\.(jpe?g|png|gif|webp|bmp)$/i.test(file.name)) await add(file, file.name || "pasted picture");
    else complain(`${file.name} is not a picture.`);
  }
  if (pictures.length > before) afterAdding();
}

/**
 * @param {string} file
 * @param {string} name
 */
async function addScene(file, name) {
  const known = pictures.find((picture) => picture.scene === file);
  if (known) {
    show(known);
    return;
  }
  const response = await fetch(new URL(`scenes/${file}`, import.meta.url));
  if (!response.ok) throw new Error("The scene cannot be loaded. Reload the page.");
  const blob = await response.blob();
  // A second click may have been faster.
  if (!pictures.some((picture) => picture.scene === file)) await add(blob, name, file);
}

/**
 * @param {string} file
 * @param {string} name
 */
async function chooseScene(file, name) {
  try {
    await addScene(file, name);
    afterAdding();
  } catch (error) {
    complain(error instanceof Error ? error.message : String(error));
  }
}

/**
 * Shows the first scene, so that the page can be tried at once.
 */
export async function showFirstScene() {
  const first = SCENES[0];
  if (first && pictures.length === 0) await addScene(...first);
}

/** @param {(text: string) => void} onError */
export function start(onError) {
  complain = onError;
  const file = byId("file", HTMLInputElement);
  file.addEventListener("change", async () => {
    await addFiles(file.files);
    file.value = "";
  });
  const drop = byId("drop", HTMLElement);
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      // Text that is dragged into a field is no picture.
      if (!(event instanceof DragEvent) || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.remove("over");
    void addFiles(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    // Tables are copied as text and as a picture; a field wants the text.
    const inField = event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
    const hasText = event.clipboardData?.types.includes("text/plain");
    if (event.clipboardData?.files.length && !(inField && hasText)) {
      event.preventDefault();
      void addFiles(event.clipboardData.files);
    }
  });
  const scenes = SCENES.map(([scene, name]) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "thumb", "aria-label": `Use the demo scene: ${name}`, onclick: () => void chooseScene(scene, name) },
        h("img", { src: new URL(`scenes/${scene}`, import.meta.url).href, alt: "" }),
      ),
    ),
  );
  byId("scenes", HTMLElement).replaceChildren(...scenes);
  startCamera();
}

function endCamera() {
  const video = byId("video", HTMLVideoElement);
  if (!(video.srcObject instanceof MediaStream)) return;
  for (const track of video.srcObject.getTracks()) track.stop();
  video.srcObject = null;
  video.hidden = true;
  byId("shoot", HTMLElement).hidden = true;
  byId("camera-off", HTMLElement).hidden = true;
  byId("camera", HTMLElement).hidden = false;
  byId("stage", HTMLElement).hidden = !current;
}

function startCamera() {
  const open = byId("camera", HTMLButtonElement);
  const shoot = byId("shoot", HTMLButtonElement);
  const off = byId("camera-off", HTMLButtonElement);
  const video = byId("video", HTMLVideoElement);
  // Browsers offer the camera only to pages of this machine and over HTTPS.
  if (!navigator.mediaDevices?.getUserMedia) return;
  open.hidden = false;
  addEventListener("pagehide", endCamera);
  off.addEventListener("click", () => {
    endCamera();
    open.focus();
  });
  open.addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      await video.play();
    } catch {
      endCamera();
      complain("The camera cannot be used: there is none, or the browser does not allow it.");
      return;
    }
    video.hidden = false;
    shoot.hidden = false;
    off.hidden = false;
    open.hidden = true;
    byId("stage", HTMLElement).hidden = true;
    shoot.focus();
  });
  shoot.addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d")?.drawImage(video, 0, 0);
    endCamera();
    canvas.toBlob((blob) => {
      if (blob) void add(blob, `camera ${new Date().toLocaleTimeString()}`).then(afterAdding);
    }, "image/jpeg", 0.92);
  });
}
