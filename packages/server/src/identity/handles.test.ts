import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { after, test } from 'node:test'
import { dnsTxt } from './handles.ts'

const closers: (() => void)[] = []
after(() => {
  for (const close of closers) close()
})

type Zone = Record<string, string[][] | 'SERVFAIL'>

/** A DNS server that knows TXT records only; names it does not know do not exist. Gives its address. */
async function nameserver(zone: Zone, asked: string[] = []): Promise<string> {
  const socket = createSocket('udp4')
  socket.on('message', (query, from) => {
    const labels: string[] = []
    let at = 12
    for (let length = query[at]!; length > 0; length = query[at]!) {
      labels.push(query.toString('latin1', at + 1, at + 1 + length))
      at += 1 + length
    }
    const name = labels.join('.').toLowerCase()
    asked.push(name)
    const known = zone[name]
    const records = Array.isArray(known) ? known : []
    const head = Buffer.from(query.subarray(0, 12))
    head.writeUInt16BE(0x8180 | (known === 'SERVFAIL' ? 2 : known === undefined ? 3 : 0), 2)
    head.writeUInt16BE(records.length, 6)
    head.fill(0, 8, 12)
    const answers = records.map(chunks => {
      const data = Buffer.concat(chunks.map(chunk => Buffer.concat([Buffer.from([chunk.length]), Buffer.from(chunk)])))
      const answer = Buffer.from([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, data.length >> 8, data.length & 0xff])
      return Buffer.concat([answer, data])
    })
    socket.send(Buffer.concat([head, query.subarray(12, at + 5), ...answers]), from.port, from.address)
  })
  await new Promise<void>(resolve => socket.bind(0, '127.0.0.1', resolve))
  closers.push(() => socket.close())
  return `127.0.0.1:${socket.address().port}`
}

const NAME = '_atproto.alice.example.com'

test('TXT records come with their chunks; a name without any has none', async () => {
  const server = await nameserver({ [NAME]: [['did=', 'did:web:x.example'], ['other']] })
  const resolve = dnsTxt({ servers: [server] })
  assert.deepEqual((await resolve(NAME)).toSorted(), [['did=', 'did:web:x.example'], ['other']])
  assert.deepEqual(await resolve('_atproto.nobody.example.com'), [])
})

test('a server that cannot say is a failure, not an empty answer', async () => {
  const server = await nameserver({ [NAME]: 'SERVFAIL' })
  await assert.rejects(dnsTxt({ servers: [server] })(NAME), /SERVFAIL/)
})

test('backups are asked in turn where the first has nothing or cannot say, and only then', async () => {
  const asked: string[] = []
  const records = [['did=did:web:x.example']]
  const empty = await nameserver({ _atproto: [] })
  const failing = await nameserver({ [NAME]: 'SERVFAIL' })
  const knowing = await nameserver({ [NAME]: records }, asked)
  const byName = knowing.replace('127.0.0.1', 'localhost')
  for (const first of [empty, failing]) {
    assert.deepEqual(await dnsTxt({ servers: [first], backup: [empty, knowing] })(NAME), records)
  }
  assert.deepEqual(await dnsTxt({ servers: [empty], backup: [byName] })(NAME), records)
  assert.equal(asked.length, 3)
  const unused = await nameserver({}, asked)
  assert.deepEqual(await dnsTxt({ servers: [knowing], backup: [unused] })(NAME), records)
  assert.equal(asked.length, 4)
  await assert.rejects(dnsTxt({ servers: [failing], backup: [empty] })(NAME), /SERVFAIL/)
})
