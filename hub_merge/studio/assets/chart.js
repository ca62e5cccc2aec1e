const show = (chart, place) => {
  const layers = JSON.parse(chart.dataset.layers);
  const lines = JSON.parse(chart.dataset.lines);
  const [left, right] = JSON.parse(chart.dataset.frame);
  const at = Math.max(0, Math.min(layers.length - 1, place));
  const span = Math.max(1, layers[layers.length - 1] - layers[0]);
  const x = left + ((right - left) * (layers[at] - layers[0])) / span;
  const cursor = chart.querySelector('.hm-cursor');
  cursor.setAttribute('x1', x);
  cursor.setAttribute('x2', x);
  cursor.classList.add('hm-shown');
  const told = lines.map(([name, values]) => `${name} ${values[at] === null ? '–' : values[at].toFixed(3)}`);
  chart.querySelector('.hm-readout').textContent = `Layer ${layers[at]}: ${told.join(' · ')}`;
  chart.dataset.at = at;
};
element.addEventListener('pointermove', (event) => {
  const svg = event.target.closest('.hm-depth svg');
  if (!svg) return;
  const chart = svg.parentElement;
  const layers = JSON.parse(chart.dataset.layers);
  const [left, right, width] = JSON.parse(chart.dataset.frame);
  const box = svg.getBoundingClientRect();
  const share = (((event.clientX - box.left) / box.width) * width - left) / (right - left);
  const wanted = layers[0] + share * (layers[layers.length - 1] - layers[0]);
  let nearest = 0;
  layers.forEach((layer, place) => {
    if (Math.abs(layer - wanted) < Math.abs(layers[nearest] - wanted)) nearest = place;
  });
  show(chart, nearest);
});
element.addEventListener('keydown', (event) => {
  const svg = event.target.closest('.hm-depth svg');
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!svg || !step) return;
  event.preventDefault();
  const at = svg.parentElement.dataset.at;
  show(svg.parentElement, at === undefined ? 0 : Number(at) + step);
});
