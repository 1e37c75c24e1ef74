// What the viewer uses of three.js; `make three` writes it to three.min.js.
export {
  BufferAttribute, BufferGeometry, LineSegments, PerspectiveCamera, Points, Scene, ShaderMaterial, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
