let last = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-action]');
  if (!button) return;
  last = button.dataset.reference;
  trigger('act', { action: button.dataset.action, reference: button.dataset.reference });
});
watch('value', () => {
  if (last === null) return;
  const again = element.querySelector(`[data-reference="${CSS.escape(last)}"]`);
  if (again && (document.activeElement === document.body || document.activeElement === null)) again.focus();
  last = null;
});
