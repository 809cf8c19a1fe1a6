// node receiver.mjs [PORT]: a ledger of deposits, kept right through reorgs. Node.js 18 or later, nothing to install.
import { createHmac, timingSafeEqual } from 'node:crypto';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';

const key = Buffer.from(process.env.HOOK_SECRET.replace(/^whsec_/, ''), 'base64');
const address = process.env.DEPOSIT_ADDRESS.toLowerCase();
const file = process.env.LEDGER ?? 'ledger.json';
let ledger = { seen: {}, deposits: {} };
try { ledger = JSON.parse(readFileSync(file, 'utf8')); } catch (error) { if (error.code !== 'ENOENT') throw error; }

function genuine(headers, body) {
  const { 'webhook-id': id, 'webhook-timestamp': time, 'webhook-signature': signatures } = headers;
  if (!id || !signatures || !/^\d+$/.test(time ?? '') || Math.abs(Date.now() / 1000 - time) > 300) return false;
  const right = createHmac('sha256', key).update(`${id}.${time}.`).update(body).digest();
  return signatures.split(' ').some((signature) => {
    const given = Buffer.from(signature.startsWith('v1,') ? signature.slice(3) : '', 'base64');
    return given.length === right.length && timingSafeEqual(given, right);
  });
}

function receive(headers, body) {
  if (!genuine(headers, body)) return 401;
  const event = JSON.parse(body);
  if (ledger.seen[headers['webhook-id']]) return 204; // Sent again because our answer was lost.
  const next = structuredClone(ledger); // Only what is on disk counts: if writing fails, it is sent again.
  next.seen[headers['webhook-id']] = true;
  // The address's own payments come, too: they are no deposits.
  const deposit = event.data.to.toLowerCase() === address;
  if (event.op === 'apply' && deposit) next.deposits[event.emission] = event.data;
  if (event.op === 'retract') delete next.deposits[event.emission];
  writeFileSync(`${file}.new`, JSON.stringify(next));
  renameSync(`${file}.new`, file);
  ledger = next;
  return 204;
}

const server = createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    let status = 500; // Not stored: it will be sent again.
    try { status = request.method === 'POST' ? receive(request.headers, Buffer.concat(parts)) : 405; } catch (error) { console.error(error); }
    response.writeHead(status).end();
  });
});
server.listen(Number(process.argv[2] ?? 8000), '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
