// A story as a timeline: timed control changes. A file contains the JSON that `zoetrope render --timeline` reads
// (docs/render.md): [{ at_s, ...controls }]. In the page's text box it is one line per entry. Independent of session and widgets.
const TIMELINE_HELP = 'Write a time and a prompt: 0:05 a cat on the beach';

function parseTimeline(text) {  // from a file or the text box; entries sorted by time
  const found = /^\s*\[/.test(text) ? JSON.parse(text) : text.split('\n').map((line) => line.trim()).filter(Boolean).map(parseLine);
  return checkTimeline(found);
}

function checkTimeline(entries) {
  entries.forEach((entry, i) => {
    const good = entry !== null && typeof entry === 'object' && Number.isFinite(entry.at_s) && entry.at_s >= 0 && Object.keys(entry).length > 1;
    if (!good) throw new Error(`entry ${i + 1} of the timeline is not an object with at_s and a control`);
  });
  return entries.toSorted((a, b) => a.at_s - b.at_s);
}

function parseLine(line) {  // "0:05 a cat", "0:10 cut: a cat" for a new shot, '0:12 {"strength": 0.7}' for anything else
  const found = /^(?:(\d+):)?(\d+(?:\.\d+)?)\s+(.+)$/.exec(line);
  if (!found) throw new Error(`"${line.slice(0, 40)}" is not a timeline entry. ${TIMELINE_HELP}`);
  const at_s = Number(found[1] ?? 0) * 60 + Number(found[2]), rest = found[3];
  if (rest.startsWith('{')) return { at_s, ...JSON.parse(rest) };
  const cut = /^cut:\s*(.+)$/.exec(rest);
  return cut ? { at_s, prompt: cut[1], scene_cut: true } : { at_s, prompt: rest };
}

function timelineLines(entries) {  // the inverse of parseTimeline
  return entries.map(({ at_s, ...controls }) => {
    const time = Number.isInteger(at_s) ? `${Math.floor(at_s / 60)}:${String(at_s % 60).padStart(2, '0')}` : String(at_s);
    const { prompt, scene_cut, ...others } = controls;
    const simple = typeof prompt === 'string' && /^[^{\s](?:[^\n]*\S)?$/.test(prompt) && !prompt.startsWith('cut:') && !Object.keys(others).length;
    if (simple && scene_cut === undefined) return `${time} ${prompt}`;
    return simple && scene_cut === true ? `${time} cut: ${prompt}` : `${time} ${JSON.stringify(controls)}`;
  }).join('\n');
}
