/** Settings of what consumers may ask for beyond the stream that everybody gets. */
import type { Setting } from '@millisky/server/config'

export const streamSettings = {
  streamFilters: {
    type: 'bool',
    default: true,
    env: ['RELAY_STREAM_FILTERS'],
    flag: '--stream-filters',
    doc: 'Consumers may ask for chosen collections, DIDs and kinds of events.',
    section: 'Streams',
  },
  streamCompression: {
    type: 'bool',
    default: true,
    env: ['RELAY_STREAM_COMPRESSION'],
    flag: '--stream-compression',
    doc: 'Consumers may ask for compressed messages (permessage-deflate).',
    section: 'Streams',
  },
  streamJson: {
    type: 'bool',
    default: true,
    env: ['RELAY_STREAM_JSON'],
    flag: '--stream-json',
    doc: 'Consumers may ask for the stream as JSON, by the subprotocol `xrpc.v1.json`.',
    section: 'Streams',
  },
  jetstream: {
    type: 'bool',
    default: true,
    env: ['RELAY_JETSTREAM'],
    flag: '--jetstream',
    doc: 'Serve `/subscribe` in the way of Jetstream.',
    section: 'Streams',
  },
  jetstreamDictionary: {
    type: 'path',
    env: ['RELAY_JETSTREAM_DICTIONARY'],
    flag: '--jetstream-dictionary',
    doc: 'File with the Zstandard dictionary of Jetstream (`zstd_dictionary` of its repository). Without it, `compress=true` there is refused.',
    section: 'Streams',
  },
} as const satisfies Record<string, Setting>
