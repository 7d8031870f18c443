// Drag and drop of one or several files, sent in pieces. An interrupted file continues where the server's copy ends,
// also after a reload of the page: its upload is remembered by name, size and time of change.
const PIECE_BYTES = 4 * 1024 * 1024;
const MAX_FAILURES = 6; // of the server; a lost connection is awaited
const MAX_PAUSE_MILLISECONDS = 10000;
const CHANGED = "The file was changed or moved since it was dropped. Drop it again.";

// As `clean` of formatting.py: control characters and changes of direction are escapes.
const HIDDEN = /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Co}\p{Cs}]/gu;
const visible = (text) => text.replace(HIDDEN, (one) => "\\u" + one.codePointAt(0).toString(16).padStart(4, "0"));

class UploadError extends Error {}
class RefusedError extends UploadError {} // of the content, which another attempt would not change

export default {
  props: { hint: String },
  data() {
    return { files: [], isOver: false };
  },
  methods: {
    choose() {
      this.$refs.input.click();
    },
    add(list) {
      for (const file of list) {
        const shown = { name: visible(file.name), id: null, sent: 0, state: "sending", message: "", abort: null, href: "" };
        const entry = { file, isAlone: list.length === 1, ...shown };
        this.files.unshift(entry);
        this.send(this.files[0]);
      }
    },
    key(file) {
      return `tunery-upload:${file.name}:${file.size}:${file.lastModified}`;
    },
    async request(url, options) {
      const response = await fetch(window.path_prefix + url, { credentials: "same-origin", ...options });
      if (response.status === 401) {
        signIn("expired");
      }
      const text = await response.text();
      let body = {};
      try {
        body = JSON.parse(text);
      } catch {
        throw new Error(`The server answered ${response.status}.`);
      }
      if (response.ok) return body;
      if (body.is_refused) throw new RefusedError(`${body.message} Correct the file and drop it again.`);
      if (response.status >= 500 && response.status !== 507) throw new Error(body.message);
      throw new UploadError(body.message);
    },
    async begin({ file, abort: { signal } }) {
      const known = localStorage.getItem(this.key(file));
      if (known) {
        try {
          return await this.request(`/uploads/${known}`, { signal });
        } catch (error) {
          if (!(error instanceof UploadError)) throw error;
          localStorage.removeItem(this.key(file)); // it has expired: begin again
        }
      }
      const upload = await this.request("/uploads", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ filename: file.name, bytes: file.size }),
        signal,
      });
      localStorage.setItem(this.key(file), upload.id);
      return upload;
    },
    async send(entry) {
      let failures = 0;
      entry.abort = new AbortController();
      while (entry.state !== "cancelled") {
        try {
          entry.state = "sending";
          entry.message = "";
          let upload = await this.begin(entry);
          entry.id = upload.id;
          entry.sent = upload.offset;
          while (!upload.result) {
            const end = Math.min(entry.sent + PIECE_BYTES, entry.file.size);
            if (end === entry.file.size) entry.message = "The server checks every line.";
            upload = await this.request(`/uploads/${upload.id}/content?offset=${entry.sent}`, {
              method: "PUT",
              body: entry.file.slice(entry.sent, end),
              signal: entry.abort.signal,
            });
            entry.sent = upload.offset;
            failures = 0;
          }
          localStorage.removeItem(this.key(entry.file));
          this.finish(entry, upload.result);
          return;
        } catch (error) {
          if (entry.state === "cancelled") return;
          failures += 1;
          const isLost = error instanceof TypeError; // of fetch
          const isChanged = isLost && !(await this.isReadable(entry.file));
          if (error instanceof UploadError || isChanged || (!isLost && failures >= MAX_FAILURES)) {
            entry.state = error instanceof RefusedError ? "refused" : "failed";
            entry.message = isChanged ? CHANGED : error.message;
            return;
          }
          entry.state = "waiting";
          entry.message = "The connection was lost; it continues by itself.";
          await new Promise((resolve) => setTimeout(resolve, Math.min(1000 * failures, MAX_PAUSE_MILLISECONDS)));
        }
      }
    },
    finish(entry, result) {
      entry.state = "done";
      entry.message = "";
      entry.href = result.table_id ? `/datasets/convert/${result.table_id}` : `/datasets/${result.file_id}`;
      const isLast = entry.isAlone && this.files[0] === entry;
      const isSending = this.files.some((one) => ["sending", "waiting"].includes(one.state));
      if (isLast && !isSending) this.$emit("uploaded", entry.href); // to leave the page would end the other uploads
    },
    async isReadable(file) {
      return file.slice(0, 1).arrayBuffer().then(() => true, () => false);
    },
    async cancel(entry) {
      entry.state = "cancelled";
      entry.message = "";
      entry.abort.abort();
      localStorage.removeItem(this.key(entry.file));
      if (entry.id) {
        await this.request(`/uploads/${entry.id}`, { method: "DELETE" }).catch(() => {}); // it expires within an hour
      }
    },
    percent(entry) {
      return entry.file.size ? Math.round((100 * entry.sent) / entry.file.size) : 100;
    },
    describe(entry) {
      const [unit, name] = entry.file.size < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
      const shown = (bytes) => `${(bytes / unit).toFixed(1)} ${name}`;
      if (entry.state === "done") return "uploaded";
      if (["cancelled", "refused"].includes(entry.state)) return entry.state;
      return `${shown(entry.sent)} of ${shown(entry.file.size)}`;
    },
  },
  template: `
  <div class="t-stack">
    <div :class="['t-drop', { 't-over': isOver }]" @dragover.prevent="isOver = true" @dragleave="isOver = false"
         @drop.prevent="isOver = false; add($event.dataTransfer.files)">
      <input ref="input" type="file" multiple class="t-sr-only" tabindex="-1" aria-hidden="true" accept=".jsonl,.json,.csv,.tsv,.xlsx,.parquet,.txt"
             @change="add($event.target.files); $event.target.value = ''">
      <svg class="t-drop-icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 16V4m-5 5 5-5 5 5M4 16v4h16v-4"/></svg>
      <p><button type="button" class="t-button t-primary" @click="choose">Choose files</button>
        <span class="t-muted"> or drop files here</span></p>
      <p class="t-hint">{{ hint }}</p>
    </div>
    <div v-for="entry in files" class="t-upload" role="status">
      <div class="t-row"><bdi class="t-strong t-wrap">{{ entry.name }}</bdi><span class="t-muted">{{ describe(entry) }}</span>
        <a v-if="entry.href" :href="entry.href" class="t-small-button">Open</a>
        <button v-if="entry.state === 'failed'" type="button" class="t-small-button" @click="send(entry)">Try again</button>
        <button v-if="!['done', 'cancelled', 'refused'].includes(entry.state)" type="button" class="t-small-button"
                :aria-label="'Cancel the upload of ' + entry.name" @click="cancel(entry)">Cancel</button>
      </div>
      <div class="t-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" :aria-valuenow="percent(entry)"
           :aria-label="'Upload of ' + entry.name"><div :style="{ width: percent(entry) + '%' }"></div></div>
      <div v-if="entry.message && ['failed', 'refused'].includes(entry.state)" class="t-error" role="alert">{{ entry.message }}</div>
      <div v-else-if="entry.message" class="t-muted">{{ entry.message }}</div>
    </div>
  </div>`,
};
