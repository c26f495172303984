/**
 * `millisky key plc-genesis`, `plc-update`, `sign-plc`, `submit-plc`: did:plc operations for owners who keep their rotation
 * keys to themselves. What signs needs no network; what needs the network sees no private key.
 */
import { readFile } from 'node:fs/promises'
import { unhex } from '@millisky/core/bytes'
import { type Curve, PublicKey, SigningKey } from '@millisky/core/crypto'
import {
  assertPlcOperation,
  type PlcData,
  type PlcOperation,
  type PlcUpdate,
  parsePlcOperation,
  plcDidOf,
  plcGenesis,
  plcUpdate,
  signPlcOperation,
  type Unsigned,
} from '@millisky/core/plc'
import { type Command, Option } from 'commander'
import { readText } from './relay-client.ts'

const PLC_DEFAULT = 'https://plc.directory'
const TIMEOUT_MS = 15_000
const PDS_TYPE = 'AtprotoPersonalDataServer'

interface Named {
  handle?: string
  pds?: string
  signingKey?: string
  rotationKey?: string[]
}

const plcOption = () => new Option('--plc <url>', 'the did:plc directory').env('PDS_DID_PLC_URL').default(PLC_DEFAULT)
const several = (key: string, before: string[] = []) => [...before, didKey(key)]

function write(value: object): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`)
}

function didKey(text: string): string {
  return PublicKey.parseDidKey(text).didKey
}

/** Adds the commands. */
export function addPlcOperations(key: Command): void {
  key
    .command('plc-genesis')
    .description('the first operation of a new DID, unsigned')
    .requiredOption('--handle <handle>', 'its handle')
    .requiredOption('--pds <url>', 'where it will live')
    .requiredOption('--signing-key <did:key>', 'as the PDS gives it: millisky account reserve-key', didKey)
    .requiredOption('--rotation-key <did:key>', 'may change the DID; several, the most powerful first', several)
    .action(({ handle, pds, signingKey, rotationKey }: Required<Named>) => {
      write(plcGenesis({ rotationKeys: rotationKey, signingKey, handle, pds: originOf(pds) }))
    })
  key
    .command('plc-update <did>')
    .description('the next operation of a DID, unsigned: what is not named stays')
    .option('--handle <handle>', 'the new handle')
    .option('--pds <url>', 'the new home')
    .option('--signing-key <did:key>', 'the new signing key', didKey)
    .option('--rotation-key <did:key>', 'instead of those there are; several, the most powerful first', several)
    .addOption(plcOption())
    .action(async (did: string, options: Named & { plc: string }) => {
      const last = parsePlcOperation(JSON.parse(await ask(`${options.plc}/${did}/log/last`)))
      write(plcUpdate(last, changeOf(options, last)))
    })
  key
    .command('sign-plc <file>')
    .description('sign an operation; `-` is standard input. Needs no network')
    .requiredOption('--key-file <file>', 'the private rotation key in hex, as millisky key generate prints it')
    .addOption(new Option('--curve <curve>', 'its curve').choices(['k256', 'p256']).default('k256'))
    .action(async (file: string, { keyFile, curve }: { keyFile: string; curve: Curve }) => {
      const signed = signedBy(JSON.parse(await readText(file)), await keyIn(keyFile, curve))
      write(signed)
      if (signed.prev === null) process.stderr.write(`${plcDidOf(signed)}\n`)
    })
  key
    .command('submit-plc <did> <file>')
    .description('give a signed operation to the directory; `-` is standard input')
    .addOption(plcOption())
    .action(async (did: string, file: string, { plc }: { plc: string }) => {
      const operation: unknown = JSON.parse(await readText(file))
      assertPlcOperation(operation)
      await ask(`${plc}/${did}`, operation)
      process.stdout.write(`${did} is changed\n`)
    })
}

function changeOf({ handle, pds, signingKey, rotationKey }: Named, last: PlcOperation): Partial<PlcData> {
  const { services, verificationMethods, alsoKnownAs } = plcUpdate(last, {})
  return {
    ...(handle ? { alsoKnownAs: [`at://${handle}`, ...alsoKnownAs.filter(name => !name.startsWith('at://'))] } : {}),
    ...(pds ? { services: { ...services, atproto_pds: { type: PDS_TYPE, endpoint: originOf(pds) } } } : {}),
    ...(signingKey ? { verificationMethods: { ...verificationMethods, atproto: signingKey } } : {}),
    ...(rotationKey ? { rotationKeys: rotationKey } : {}),
  }
}

/** @throws Refused, Malformed for what no directory would take */
function signedBy(unsigned: Unsigned<PlcUpdate>, key: SigningKey): PlcUpdate {
  const { sig: _, ...wanted } = unsigned as PlcUpdate
  if (!wanted.rotationKeys?.includes(key.didKey) && wanted.prev === null) {
    throw new Error(`${key.didKey} is none of the operation's rotation keys`)
  }
  const signed: unknown = signPlcOperation<PlcUpdate>(wanted, key)
  assertPlcOperation(signed)
  return signed as PlcUpdate
}

async function keyIn(path: string, curve: Curve): Promise<SigningKey> {
  const text = (await readFile(path, 'utf8')).trim()
  // What `key generate` prints may have been kept whole.
  const [, secret = text] = /^private\s+([0-9a-f]{64})$/m.exec(text) ?? []
  if (!/^[0-9a-f]{64}$/i.test(secret)) throw new Error(`${path} holds no private key: 64 hexadecimal digits`)
  return SigningKey.fromPrivate(curve, unhex(secret.toLowerCase()))
}

function originOf(url: string): string {
  return new URL(url).origin
}

async function ask(url: string, body?: object): Promise<string> {
  const headers = { 'content-type': 'application/json' }
  const posted = body === undefined ? {} : { method: 'POST', headers, body: JSON.stringify(body) }
  const reply = await fetch(url, { ...posted, signal: AbortSignal.timeout(TIMEOUT_MS) })
  const text = await reply.text()
  if (!reply.ok) throw new Error(`the directory refused (${reply.status}): ${text.slice(0, 500)}`)
  return text
}
