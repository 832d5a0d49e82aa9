// What the stage says: errors over the picture, and notes in a quiet strip below it. Each stands until what caused it is
// over or the viewer dismisses it. Independent of session and sources.
class Messages {
  constructor(stage) {
    Object.assign(this, { errors: new Map(), notes: new Map() });  // subject: { text, dismissed }; text: whether dismissed
    this.boxes = { errors: stage.querySelector('.zt-message'), notes: stage.querySelector('.zt-note') };
    this.boxes.errors.querySelector('button').addEventListener('click', () => {
      for (const error of this.errors.values()) error.dismissed = true;
      this.show();
    });
    this.boxes.notes.querySelector('button').addEventListener('click', () => {
      for (const text of this.notes.keys()) this.notes.set(text, true);
      this.show();
    });
  }

  say(subject, text) {  // an error about a subject, in place of the one before; '' ends it
    if (text) this.errors.set(subject, { text, dismissed: false }); else this.errors.delete(subject);
    this.show();
  }

  hold(subject, text) {  // the same for a state, which is told again and again: unchanged it stays dismissed
    if (this.errors.get(subject)?.text !== (text || undefined)) this.say(subject, text);
  }

  note(text) {  // not an error; once for each text
    if (!text || this.notes.has(text)) return;
    this.notes.set(text, false);
    this.show();
  }

  show() {
    const lines = {
      errors: [...this.errors.values()].filter(({ dismissed }) => !dismissed).map(({ text }) => text),
      notes: [...this.notes].filter(([, dismissed]) => !dismissed).map(([text]) => text),
    };
    for (const [kind, box] of Object.entries(this.boxes)) {
      box.querySelector('p').textContent = lines[kind].join('\n');
      box.hidden = !lines[kind].length;
    }
  }
}
