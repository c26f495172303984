/** The end of a process that cannot do what it promises: what is written is durable, and a supervisor starts it again. */
import type { Logger } from '@millisky/server/trace'

export function fatal(log: Logger): (error: unknown) => void {
  return error => {
    log.fatal({ err: error }, 'the relay cannot go on')
    process.exit(1)
  }
}
