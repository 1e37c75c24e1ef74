// SPDX-License-Identifier: MIT
// The viewer of a scene page: all panels share one canvas, one camera and the points; each has its flow and colors.
"use strict";
(() => {
  const CLOUD1 = [94, 169, 255], CLOUD2 = [255, 150, 50], DIM = [92, 98, 108];
  const SOME_LINES = 1500, SECONDS = 2, REACH = 7; // REACH: pixels from the pointer to a point
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const element = (kind, text, name = "") => {
    const made = document.createElement(kind);
    [made.textContent, made.className] = [text, name];
    return made;
  };
  const canvas = at("canvas"), main = canvas.parentElement;

  let renderer;
  try {
    renderer = new THREE.WebGLRenderer({ canvas, antialias: false }); // points are cut out of squares: it would only cost time
  } catch {
    at("problem").hidden = false;
    return;
  }
  const pc1 = floats(data.pc1), count = pc1.length / 3;
  const state = { color: "flow", lines: "none", move: 0, size: 3, cloud1: true, cloud2: true, playing: false };

  // --- what is drawn -------------------------------------------------------------------------------

  const uniforms = { move: { value: 0 }, size: { value: 3 }, near: { value: 1 }, pixels: { value: 1 } };
  const VERTEX = `
    attribute vec3 flow; attribute vec3 tint; attribute float end;
    uniform float move, size, near, pixels; varying vec3 color;
    void main() {
      #ifdef LINE
        vec3 at = position + end * flow;
      #else
        vec3 at = position + move * flow;
      #endif
      vec4 seen = modelViewMatrix * vec4(at, 1.0);
      gl_Position = projectionMatrix * seen;
      gl_PointSize = pixels * size * SHARE * clamp(near / max(-seen.z, 1e-6), 0.6, 3.0);
      color = tint;
    }`;
  const FRAGMENT = `
    varying vec3 color;
    void main() {
      #ifndef LINE
        if (length(gl_PointCoord - 0.5) > 0.5) discard;
      #endif
      gl_FragColor = vec4(color, 1.0);
    }`;
  const material = (defines) =>
    new THREE.ShaderMaterial({ uniforms, vertexShader: VERTEX, fragmentShader: FRAGMENT, defines });
  const pointMaterial = material({ SHARE: "1.0" }), behindMaterial = material({ SHARE: "0.7" });
  const lineMaterial = material({ SHARE: "1.0", LINE: 1 });

  const attribute = (array, size, normalized = false) => new THREE.BufferAttribute(array, size, normalized);
  const plain = (rows, color) => Uint8Array.from({ length: 3 * rows }, (_, index) => color[index % 3]);
  const geometry = (position, flow, tint, end, index) => {
    const made = new THREE.BufferGeometry();
    if (index) made.setIndex(index);
    made.setAttribute("position", position);
    made.setAttribute("flow", flow);
    made.setAttribute("tint", tint);
    if (end) made.setAttribute("end", end);
    return made;
  };
  const shown = (Kind, made, how) => {
    const object = new Kind(made, how);
    object.frustumCulled = false; // the shader moves the points
    return object;
  };

  // Rows without a point are NaN and not drawn. Lines have an order in which any first part is spread over the cloud.
  const rows = Uint32Array.from({ length: count }, (_, row) => row).filter((row) => Number.isFinite(pc1[3 * row]));
  const index1 = attribute(rows, 1);
  const gcd = (a, b) => (b ? gcd(b, a % b) : a);
  let stride = Math.max(1, Math.round(rows.length * 0.618));
  while (gcd(stride, rows.length) > 1) stride += 1;
  const order = rows.map((_, at) => rows[(at * stride) % rows.length]);
  const doubled = (array) => {
    const both = new array.constructor(6 * order.length);
    order.forEach((row, index) => {
      for (let axis = 0; axis < 6; axis++) both[6 * index + axis] = array[3 * row + (axis % 3)];
    });
    return both;
  };

  const position1 = attribute(pc1, 3);
  const linePosition = attribute(doubled(pc1), 3);
  const lineEnd = attribute(Float32Array.from({ length: 2 * order.length }, (_, index) => index % 2), 1);
  const pc2 = floats(data.pc2);
  const tint2 = attribute(plain(pc2.length / 3, DIM), 3, true);
  const geometry2 = geometry(attribute(pc2, 3), attribute(new Float32Array(pc2.length), 3), tint2);
  const given = data.panels.length ? data.panels : [{ name: "", figures: "" }];

  const panels = given.map((one) => {
    const flow = one.flow ? floats(one.flow) : new Float32Array(3 * count);
    const moving = flow.map((value) => (Number.isFinite(value) ? value : 0));
    const colors = {
      flow: one.flow ? bytes(one.flowColors) : plain(count, CLOUD1),
      own: one.flow ? bytes(one.ownColors) : plain(count, CLOUD1),
      error: one.errors ? bytes(one.errorColors) : plain(count, data.unknown),
      clouds: plain(count, CLOUD1),
    };
    const tint = attribute(colors.flow.slice(), 3, true);
    const lineTint = attribute(doubled(colors.flow), 3, true);
    const cloud1 = shown(THREE.Points, geometry(position1, attribute(moving, 3), tint, null, index1), pointMaterial);
    const cloud2 = shown(THREE.Points, geometry2, behindMaterial);
    const lineGeometry = geometry(linePosition, attribute(doubled(moving), 3), lineTint, lineEnd);
    const lines = shown(THREE.LineSegments, lineGeometry, lineMaterial);
    const scene = new THREE.Scene();
    scene.add(cloud2, cloud1, lines);
    const label = element("div", "", "label"), text = element("div", "");
    text.append(element("b", one.name), element("span", one.figures));
    label.append(text);
    at("labels").append(label);
    const errors = one.errors ? floats(one.errors) : null;
    return { name: one.name, flow, moving, colors, tint, lineTint, cloud1, cloud2, lines, scene, label, errors, visible: true };
  });

  // --- camera --------------------------------------------------------------------------------------

  const camera = new THREE.PerspectiveCamera(data.field, 1, 0.01, 1000);
  const controls = new THREE.OrbitControls(camera, canvas);
  controls.zoomToCursor = true;
  const target = new THREE.Vector3(), offset = new THREE.Vector3(); // of the first view on panels of this aspect

  function look(above) {
    const view = data.views.findLast((one) => one.aspect <= camera.aspect) ?? data.views[0];
    target.set(...view.target);
    offset.set(...view.position).sub(target);
    controls.target.copy(target);
    camera.position.copy(target).add(above ? new THREE.Vector3(0, 1.4 * offset.length(), -1e-3) : offset); // forward points up
    controls.update();
    draw();
  }
  const reset = () => look(false), top = () => look(true);

  // --- drawing, once per frame and only when something has changed -----------------------------------

  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame((now) => {
      waiting = false;
      step(now);
      render();
      if (state.playing) draw();
    });
  }

  let before = 0;
  function step(now) {
    if (!state.playing) {
      before = 0;
      return;
    }
    const passed = before ? (now - before) / 1000 / SECONDS : 0;
    before = now;
    setMove(state.move >= 1 ? 0 : Math.min(1, state.move + passed));
  }

  const visible = () => panels.filter((one) => one.visible);
  function rectangles() {
    const number = visible().length, width = main.clientWidth, height = main.clientHeight;
    let columns = 1, best = -1; // as many columns as make the panels largest at their first aspect
    for (let tried = 1; tried <= number; tried++) {
      const rows = Math.ceil(number / tried);
      const side = Math.min(width / tried / data.aspect, height / rows);
      if (side > best) [columns, best] = [tried, side];
    }
    const rows = Math.ceil(number / columns), w = width / columns, h = height / rows;
    return visible().map((_, index) => ({ x: (index % columns) * w, y: Math.floor(index / columns) * h, w, h }));
  }

  function render() {
    renderer.info.reset();
    const rects = rectangles(), height = main.clientHeight;
    camera.far = 20 * (offset.length() + camera.position.distanceTo(target)) + 100;
    camera.near = camera.far / 50000;
    if (rects.length) camera.aspect = rects[0].w / rects[0].h;
    camera.updateProjectionMatrix();
    uniforms.near.value = offset.length();
    uniforms.pixels.value = renderer.getPixelRatio();
    renderer.setScissorTest(false);
    renderer.clear();
    renderer.setScissorTest(true);
    visible().forEach((panel, index) => {
      const { x, y, w, h } = rects[index];
      panel.cloud1.visible = state.cloud1;
      panel.cloud2.visible = state.cloud2;
      panel.lines.visible = state.lines !== "none";
      panel.lines.geometry.setDrawRange(0, 2 * Math.min(order.length, state.lines === "all" ? Infinity : SOME_LINES));
      renderer.setViewport(x, height - y - h, w, h);
      renderer.setScissor(x, height - y - h, w, h);
      renderer.render(panel.scene, camera);
    });
  }

  function layout() {
    renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    renderer.setSize(main.clientWidth, main.clientHeight, false);
    const rects = rectangles();
    for (const panel of panels) panel.label.hidden = !panel.visible;
    visible().forEach(({ label }, index) => {
      const { x, y, w, h } = rects[index];
      Object.assign(label.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
    });
    hide();
    draw();
  }

  // --- colors and legend -----------------------------------------------------------------------------

  function recolor() {
    for (const panel of panels) {
      panel.tint.array.set(panel.colors[state.color]);
      panel.lineTint.array.set(doubled(panel.colors[state.color]));
      panel.tint.needsUpdate = panel.lineTint.needsUpdate = true;
    }
    tint2.array.set(plain(pc2.length / 3, state.color === "clouds" ? CLOUD2 : DIM));
    tint2.needsUpdate = true;
    behindMaterial.depthWrite = state.color === "clouds"; // otherwise cloud 1 hides cloud 2
    legend();
    draw();
  }

  const picture = (text, width, height, channels) => {
    const made = document.createElement("canvas"), context = made.getContext("2d"), raw = bytes(text);
    [made.width, made.height] = [width, height];
    const image = context.createImageData(width, height);
    for (let index = 0; index < width * height; index++) {
      for (let channel = 0; channel < 4; channel++) {
        image.data[4 * index + channel] = channel < channels ? raw[channels * index + channel] : 255;
      }
    }
    context.putImageData(image, 0, 0);
    return made;
  };
  const swatch = (color, text) => {
    const line = element("p", ""), dot = element("span", "", "swatch");
    dot.style.background = `rgb(${color})`;
    line.append(dot, text);
    return line;
  };
  function legend() {
    const parts = [], metres = (value) => `${+value.toPrecision(3)} m`;
    if (["flow", "own"].includes(state.color) && data.panels.length) {
      const wheel = picture(data.wheel, 96, 96, 4), rim = state.color === "own" ? data.longestOwn : data.longest;
      parts.push(element("div", "direction: forward"), wheel, element("div", `rim: ${metres(rim)} and more`));
    } else if (state.color === "error" && data.largest !== null) {
      const ramp = picture(data.ramp, 128, 1, 3), ends = element("div", "", "ends");
      ramp.className = "ramp";
      ends.append(element("span", "0"), element("span", `${metres(data.largest)} and more`));
      parts.push(element("div", "error of the flow"), ramp, ends);
    }
    if (state.color === "error") parts.push(swatch(data.unknown, "unknown"));
    if (state.color === "clouds" || !data.panels.length) parts.push(swatch(CLOUD1, "cloud 1"));
    parts.push(swatch(state.color === "clouds" ? CLOUD2 : DIM, "cloud 2"));
    at("legend").replaceChildren(...parts);
  }

  // --- values under the mouse ------------------------------------------------------------------------

  const matrix = { elements: null };
  function nearest(panel, rect, x, y) {
    const e = matrix.elements, move = state.move, flow = panel.moving;
    let found = -1, depth = Infinity;
    for (const row of rows) {
      const a = pc1[3 * row] + move * flow[3 * row];
      const b = pc1[3 * row + 1] + move * flow[3 * row + 1];
      const c = pc1[3 * row + 2] + move * flow[3 * row + 2];
      const w = e[3] * a + e[7] * b + e[11] * c + e[15];
      if (w <= 0 || w >= depth) continue;
      const dx = ((e[0] * a + e[4] * b + e[8] * c + e[12]) / w + 1) * rect.w / 2 - x;
      const dy = (1 - (e[1] * a + e[5] * b + e[9] * c + e[13]) / w) * rect.h / 2 - y;
      if (dx * dx + dy * dy < REACH * REACH) [found, depth] = [row, w];
    }
    return found;
  }

  const inFrame = (vector) => [0, 1, 2].map((axis) => data.axes.reduce((sum, one, row) => sum + vector[row] * one[axis], 0));
  const three = (vector, digits) => vector.map((value) => value.toFixed(digits)).join("  ");

  function inspect(x, y) {
    const rects = rectangles();
    const index = rects.findIndex((one) => x >= one.x && x < one.x + one.w && y >= one.y && y < one.y + one.h);
    if (index < 0 || !state.cloud1) return hide();
    const panel = visible()[index], rect = rects[index];
    matrix.elements = camera.projectionMatrix.clone().multiply(camera.matrixWorldInverse).elements;
    const row = nearest(panel, rect, x - rect.x, y - rect.y);
    if (row < 0) return hide();
    const own = [0, 1, 2].map((axis) => pc1[3 * row + axis]), flow = [0, 1, 2].map((axis) => panel.flow[3 * row + axis]);
    const lines = [`point ${row}`, `x y z  ${three(inFrame(own.map((value, axis) => value + data.center[axis])), 2)} m`];
    if (!data.panels.length) {
      // nothing more is known
    } else if (flow.every(Number.isFinite)) {
      lines.push(`flow   ${three(inFrame(flow), 3)} m`, `length ${Math.hypot(...flow).toFixed(3)} m`);
    } else {
      lines.push("no flow");
    }
    if (panel.errors) lines.push(`error  ${Number.isFinite(panel.errors[row]) ? `${panel.errors[row].toFixed(3)} m` : "unknown"}`);
    const seen = new THREE.Vector3(...own.map((value, axis) => value + state.move * panel.moving[3 * row + axis])).project(camera);
    const mark = at("mark"), tip = at("tip");
    mark.style.left = `${rect.x + (seen.x + 1) * rect.w / 2}px`;
    mark.style.top = `${rect.y + (1 - seen.y) * rect.h / 2}px`;
    tip.textContent = lines.join("\n");
    mark.hidden = tip.hidden = false;
    tip.style.left = `${Math.max(0, x + 16 + tip.offsetWidth > main.clientWidth ? x - 16 - tip.offsetWidth : x + 16)}px`;
    tip.style.top = `${Math.max(0, y + 16 + tip.offsetHeight > main.clientHeight ? y - 16 - tip.offsetHeight : y + 16)}px`;
  }
  const hide = () => { at("mark").hidden = at("tip").hidden = true; };

  let pointer = null;
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) return hide();
    if (!pointer) requestAnimationFrame(() => {
      if (pointer) inspect(...pointer);
      pointer = null;
    });
    pointer = [event.offsetX, event.offsetY];
  });
  canvas.addEventListener("pointerleave", () => { pointer = null; hide(); });

  // --- controls --------------------------------------------------------------------------------------

  function setMove(value) {
    state.move = uniforms.move.value = Math.min(1, Math.max(0, value));
    at("move").value = state.move;
    at("moved").textContent = state.move.toFixed(2);
    hide();
    draw();
  }
  function play(on) {
    state.playing = on;
    at("play").textContent = on ? "❚❚" : "▶";
    draw();
  }
  function setSize(value) {
    state.size = uniforms.size.value = Math.min(10, Math.max(1, value));
    at("size").value = state.size;
    draw();
  }
  function choose(id, value) {
    state[id] = at(id).value = value;
    if (id === "color") recolor();
    draw();
  }
  function next(id) {
    const options = [...at(id).options].filter((one) => !one.disabled).map((one) => one.value);
    choose(id, options[(options.indexOf(state[id]) + 1) % options.length]);
  }
  function toggle(id) {
    state[id] = at(id).checked = !state[id];
    hide();
    draw();
  }

  for (const id of ["color", "lines"]) at(id).addEventListener("change", (event) => { choose(id, event.target.value); event.target.blur(); });
  for (const id of ["cloud1", "cloud2"]) at(id).addEventListener("change", () => toggle(id));
  at("move").addEventListener("input", (event) => { play(false); setMove(+event.target.value); });
  at("size").addEventListener("input", (event) => setSize(+event.target.value));
  at("play").addEventListener("click", () => play(!state.playing));
  at("reset").addEventListener("click", reset);
  at("top").addEventListener("click", top);
  at("help").addEventListener("click", () => at("keys").showModal());
  if (data.largest === null) at("color").querySelector("[value=error]").disabled = true;
  if (!data.panels.length) for (const id of ["play", "move", "lines"]) at(id).disabled = true;
  if (panels.length > 1) for (const panel of panels) {
    const label = document.createElement("label"), box = document.createElement("input");
    [box.type, box.checked] = ["checkbox", true];
    box.addEventListener("change", () => { panel.visible = box.checked; layout(); });
    label.append(box, panel.name);
    at("shown").append(label);
  }

  const keys = {
    " ": () => play(!state.playing),
    ArrowLeft: () => setMove(state.move - 0.05),
    ArrowRight: () => setMove(state.move + 0.05),
    Home: () => setMove(0),
    End: () => setMove(1),
    c: () => next("color"),
    l: () => next("lines"),
    1: () => toggle("cloud1"),
    2: () => toggle("cloud2"),
    "+": () => setSize(state.size + 0.5),
    "=": () => setSize(state.size + 0.5),
    "-": () => setSize(state.size - 0.5),
    g: () => { at("legend").hidden = !at("legend").hidden; },
    r: reset,
    t: top,
    "?": () => at("keys").showModal(),
    h: () => at("keys").showModal(),
  };
  addEventListener("keydown", (event) => {
    const typed = event.target.closest("header select, header input") && !/^[a-z?+=\-12]$/.test(event.key);
    const pressed = event.target.closest("header button") && event.key === " ";
    if (event.ctrlKey || event.metaKey || event.altKey || at("keys").open || typed || pressed || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  renderer.setClearColor(0x15181c);
  renderer.autoClear = false;
  renderer.sortObjects = false; // cloud 2 comes first; sorting would need bounds, which NaN has not
  renderer.info.autoReset = false;
  controls.addEventListener("change", draw);
  new ResizeObserver(layout).observe(main);
  layout();
  render(); // sets the aspect of the camera, which the distance depends on
  recolor();
  reset();
  window.viewer = { state, camera, controls, panels, renderer, render, inspect }; // for tests and the console
})();
