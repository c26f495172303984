/** `millisky key`: signing and rotation keys, and the operations that they sign, offline. */
import { randomBytes } from 'node:crypto'
import { hex, unhex } from '@millisky/core/bytes'
import { type Curve, PublicKey, SigningKey } from '@millisky/core/crypto'
import { Command, Option } from 'commander'
import { addPlcOperations } from './plc-operations.ts'

const curveOption = () => new Option('--curve <curve>', 'the curve').choices(['k256', 'p256']).default('k256')

function show(key: SigningKey): void {
  process.stdout.write(`private  ${hex(key.privateBytes)}\npublic   ${key.didKey}\n`)
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
    .description('the did:key of a private key in hex, or of a public key in any of its forms')
    .addOption(curveOption())
    .action((text: string, options: { curve: Curve }) => {
      const publicKey = text.startsWith('did:key:')
        ? PublicKey.parseDidKey(text)
        : text.startsWith('z')
          ? PublicKey.parseMultibase(text)
          : SigningKey.fromPrivate(options.curve, unhex(text)).publicKey
      process.stdout.write(`${publicKey.didKey}\n`)
    })
  addPlcOperations(key)
  return key
}
