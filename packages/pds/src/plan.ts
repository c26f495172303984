/**
 * What the writes of one call come to: one to each record at most, since consumers refuse an event that names a record twice.
 */
import { checkExists } from '@millisky/core/repo'
import type { RecordWrite } from './store/store.ts'

export class Plan {
  /** By path, in order; null for a record that is made and deleted again. */
  readonly #writes = new Map<string, RecordWrite | null>()

  /** @throws Refused when it does not fit what was planned before. Whether that fits the repository shows when it is committed. */
  add(write: RecordWrite): void {
    const { action, path } = write
    const before = this.#writes.get(path)
    if (before === undefined) {
      this.#writes.set(path, write)
      return
    }
    checkExists(write, before !== null && before.action !== 'delete')
    const wasThere = before !== null && before.action !== 'create'
    if (action === 'delete') this.#writes.set(path, wasThere ? write : null)
    else this.#writes.set(path, { ...write, action: wasThere ? 'update' : 'create' })
  }

  get writes(): RecordWrite[] {
    return [...this.#writes.values()].filter(write => write !== null)
  }

  /** Paths of records that are made and deleted again: nothing will show whether they could be made. */
  get fleeting(): string[] {
    return [...this.#writes].filter(([, write]) => write === null).map(([path]) => path)
  }
}
