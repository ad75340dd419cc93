// Asking back: a dialog whose answer is yes or anything else.

/**
 * Open `dialog`, whose buttons are a form's of method "dialog", and wait for what is chosen. What
 * had the focus before has it again.
 *
 * @param {HTMLDialogElement} dialog
 * @returns {Promise<boolean>} whether it was the button of value "yes"
 */
export function isSure(dialog) {
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
