// Keeps the parts of a running recording in the browser's storage (IndexedDB) as they come: a page that was left, reloaded or
// has crashed offers them when it is opened again. Owns that storage; independent of session and stage.
const KEPT_STORE = 'parts', KEPT_WAIT_MS = 500;
const settled = (request) => new Promise((done, failed) => {
  request.onsuccess = () => done(request.result);
  request.onerror = () => failed(request.error);
});

class KeptRecordings {
  constructor() {
    this.own = null;  // id of the recording that this page makes now
    this.database = null;
    this.channel = new BroadcastChannel('zoetrope-recordings');  // other tabs' recordings are not lost
    this.alive = new Set();
    this.channel.onmessage = ({ data: { asks, alive } }) => {
      if (alive) this.alive.add(alive);
      if (asks && this.own) this.channel.postMessage({ alive: this.own });
    };
  }

  async store(mode) {
    if (!this.database) {
      const request = indexedDB.open('zoetrope-recordings', 1);
      request.onupgradeneeded = () => request.result.createObjectStore(KEPT_STORE, { autoIncrement: true }).createIndex('id', 'id');
      this.database = settled(request);
    }
    return (await this.database).transaction(KEPT_STORE, mode).objectStore(KEPT_STORE);
  }

  begin(type) { Object.assign(this, { own: crypto.getRandomValues(new Uint32Array(2)).join('-'), type, beganMs: Date.now() }); }

  async add(part) {  // rejects where the browser has no storage or no room
    const { own: id, type, beganMs } = this;
    await settled((await this.store('readwrite')).add({ id, type, beganMs, part }));
  }

  async remove(id) {
    const store = await this.store('readwrite');
    for (const key of await settled(store.index('id').getAllKeys(id))) store.delete(key);
  }

  async lost() {  // [{ id, beganMs, blob }] of recordings that no open page makes any more, oldest first
    this.channel.postMessage({ asks: true });
    await new Promise((done) => setTimeout(done, KEPT_WAIT_MS));
    const found = new Map();
    for (const { id, type, beganMs, part } of await settled((await this.store('readonly')).getAll())) {
      if (id === this.own || this.alive.has(id)) continue;
      const { parts } = found.get(id) ?? found.set(id, { type, beganMs, parts: [] }).get(id);
      parts.push(part);
    }
    return [...found].map(([id, { type, beganMs, parts }]) => ({ id, beganMs, blob: new Blob(parts, { type }) }));
  }
}

async function offerKept(kept, list, save) {  // shows what is kept; save(blob) is called on Download
  const lost = await kept.lost().catch(() => []);  // without storage nothing was kept
  list.replaceChildren(...lost.map(({ id, beganMs, blob }) => {
    const row = document.createElement('li'), words = document.createElement('span');
    words.textContent = `The recording of ${new Date(beganMs).toLocaleString()} was cut off when its page was left; what came before is kept.`;
    const button = (textContent, action) => {
      const made = Object.assign(document.createElement('button'), { textContent });
      made.addEventListener('click', action);
      return made;
    };
    row.append(words, button('Download', () => save(blob)), button('Delete', () => kept.remove(id).then(() => row.remove())));
    return row;
  }));
}
