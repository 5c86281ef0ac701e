// One turn with @openai/agents-realtime, for test_agents.py: argv[2] is the door, argv[3] a file of PCM16 at 24 kHz.
// Prints one JSON object. Resolved from the folder that NODE_PATH's first entry names, where npm installed it.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import path from 'node:path';

const modules = process.env.NODE_PATH.split(path.delimiter)[0];
const require = createRequire(path.join(modules, 'x.js'));
const { RealtimeAgent, RealtimeSession, OpenAIRealtimeWebSocket } =
  await import(pathToFileURL(require.resolve('@openai/agents-realtime')).href).then((m) => m.default ?? m);

const [, , url, soundFile] = process.argv;
const sound = readFileSync(soundFile);
const transport = new OpenAIRealtimeWebSocket({ url });
const session = new RealtimeSession(new RealtimeAgent({ name: 'student', instructions: 'Be brief.' }), {
  transport,
  model: 'aula:small',
  tracingDisabled: true,
  config: { audio: { input: { turnDetection: null } } },
});

const seen = { audioBytes: 0, errors: [], types: {}, history: [] };
session.on('audio', (event) => { seen.audioBytes += event.data.byteLength; });
session.on('error', (error) => { seen.errors.push(JSON.stringify(error.error ?? error).slice(0, 500)); });
transport.on('*', (event) => { seen.types[event.type] = (seen.types[event.type] ?? 0) + 1; });

const next = (type) => new Promise((resolve) => {
  const listen = (event) => { if (event.type === type) { transport.off('*', listen); resolve(event); } };
  transport.on('*', listen);
});
const timer = setTimeout(() => { console.log(JSON.stringify({ ...seen, timedOut: true })); process.exit(1); }, 30000);

const updated = next('session.updated');
await session.connect({ apiKey: 'any', url });
await updated;

// Aloud, push-to-talk.
let done = next('response.done');
for (let at = 0; at < sound.length; at += 4800) {
  session.sendAudio(sound.buffer.slice(sound.byteOffset + at, sound.byteOffset + Math.min(at + 4800, sound.length)));
}
transport.sendEvent({ type: 'input_audio_buffer.commit' });
transport.sendEvent({ type: 'response.create' });
seen.aloud = (await done).response.aula.question;

// In writing, and interrupted.
const begun = next('response.output_audio.delta');
done = next('response.done');
session.sendMessage('What is momentum?');
await begun;
session.interrupt();
await done;

// Once more, to its end.
done = next('response.done');
session.sendMessage('What is inertia?');
seen.answer = (await done).response.output[0].content[0].transcript;
await new Promise((resolve) => setTimeout(resolve, 50));
seen.history = session.history.filter((item) => item.type === 'message').map((item) => [item.role, item.content.length]);
session.close();
clearTimeout(timer);
console.log(JSON.stringify(seen));
process.exit(0);
