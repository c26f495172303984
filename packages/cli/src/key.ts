/** `millisky key`: signing and rotation keys, and the operations that they sign, offline. */
import { createPublicKey, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hex, unbase64url, unhex } from '@millisky/core/bytes'
import { type Curve, PublicKey, SigningKey } from '@millisky/core/crypto'
import { Command, Option } from 'commander'
import { addPlcOperations } from './plc-operations.ts'

const curveOption = () => new Option('--curve <curve>', 'the curve').choices(['k256', 'p256']).default('k256')

function show(key: SigningKey): void {
  process.stdout.write(`private  ${hex(key.privateBytes)}\npublic   ${key.didKey}\n`)
}

const PEM_CURVES: Readonly<Record<string, Curve>> = { secp256k1: 'k256', 'P-256': 'p256' }

function publicKeyOf(text: string, curve: Curve): PublicKey {
  if (text.startsWith('did:key:')) return PublicKey.parseDidKey(text)
  if (text.startsWith('z')) return PublicKey.parseMultibase(text)
  if (/^[0-9a-f]{64}$/i.test(text)) return SigningKey.fromPrivate(curve, unhex(text)).publicKey
  // Of a private key as well: what it makes of that is the public half.
  const { crv, x, y } = createPublicKey(readFileSync(text)).export({ format: 'jwk' })
  const named = PEM_CURVES[crv ?? '']
  if (!named) throw new Error(`${text} has no key of secp256k1 or P-256`)
  return PublicKey.fromBytes(named, compressed(unbase64url(x!), unbase64url(y!)))
}

function compressed(x: Uint8Array, y: Uint8Array): Uint8Array {
  return Uint8Array.of(2 + (y.at(-1)! & 1), ...x)
}

export function keyCommand(): Command {
  const key = new Command('key').description('signing and rotation keys, and did:plc operations, offline')
  key
    .command('generate')
    .description('make a key pair; keep the private half safe')
    .addOption(curveOption())
    .action((options: { curve: Curve }) => {
      show(SigningKey.fromPrivate(options.curve, randomBytes(32)))
    })
  key
    .command('public <key>')
    .description('the did:key of a private key in hex or a PEM file, or of a public key in any of its forms')
    .addOption(curveOption())
    .action((text: string, options: { curve: Curve }) => {
      process.stdout.write(`${publicKeyOf(text, options.curve).didKey}\n`)
    })
  addPlcOperations(key)
  return key
}
