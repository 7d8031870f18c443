// A table whose rows become cards on narrow screens. Cells are text, or objects with: text, href, sub, tone (a pill),
// progress (0 to 1), points (of a sparkline), buttons. All text is interpolated, never parsed as HTML.
export default {
  props: {
    caption: String,
    columns: Array,
    rows: Array,
    selectable: Boolean,
    selected: { type: Array, default: () => [] },
    sort: { type: String, default: "" },
  },
  data() {
    return { awaited: "" }; // the requested order, until the rows have it
  },
  watch: {
    sort() {
      this.awaited = "";
    },
  },
  methods: {
    sortBy(sort) {
      this.awaited = sort;
      this.$emit("sort", sort);
    },
    turn(column) {
      const latest = this.awaited || this.sort; // also of a click that the server has not answered
      this.sortBy(latest === column.key ? "-" + column.key : column.key);
    },
    cell(row, column) {
      const value = row[column.key];
      return value !== null && typeof value === "object" ? value : { text: value ?? "–" };
    },
    deselect(id) {
      for (const box of this.$el.querySelectorAll("td.t-check input")) if (box.value === id) box.checked = false;
    },
    isVoid(cell) {
      return cell.text === "–" && !cell.sub;
    },
    direction(column) {
      if (this.sort === column.key) return "ascending";
      return this.sort === "-" + column.key ? "descending" : "none";
    },
    arrow(column) {
      return { ascending: " ↑", descending: " ↓", none: "" }[this.direction(column)];
    },
  },
  template: `
  <div class="t-table-frame" tabindex="0" role="region" :aria-label="caption">
    <div v-if="columns.some((column) => column.sortable)" class="t-sort-select"><span aria-hidden="true">Sort by</span>
      <select class="t-input" aria-label="Sort by" :value="sort" @change="sortBy($event.target.value)">
        <template v-for="column in columns.filter((column) => column.sortable)" :key="column.key">
          <option :value="column.key">{{ column.label }}, ascending</option>
          <option :value="'-' + column.key">{{ column.label }}, descending</option>
        </template>
      </select>
    </div>
    <table class="t-table">
      <caption class="t-sr-only">{{ caption }}</caption>
      <thead>
        <tr>
          <th v-if="selectable" scope="col" class="t-check"><span class="t-sr-only">Selection</span></th>
          <th v-for="column in columns" :key="column.key" scope="col" :class="['t-' + (column.kind || 'text')]"
              :aria-sort="column.sortable ? direction(column) : null">
            <button v-if="column.sortable" type="button" class="t-sort" @click="turn(column)"
              :aria-busy="awaited.replace('-', '') === column.key || null"
              >{{ column.label }}<span aria-hidden="true">{{ arrow(column) }}</span></button>
            <template v-else>{{ column.label }}</template>
          </th>
        </tr>
      </thead>
      <tbody>
        <tr v-for="row in rows" :key="row.id" :class="{ 't-selected': selected.includes(row.id) }">
          <td v-if="selectable" class="t-check">
            <label><input type="checkbox" :value="row.id" :checked="selected.includes(row.id)"
                   :aria-label="'Select ' + (row.label || row.id)"
                   @change="$emit('select', row.id, $event.target.checked)"></label>
          </td>
          <td v-for="column in columns" :key="column.key" :data-label="column.label"
              :class="['t-' + (column.kind || 'text'), { 't-lead': column.lead, 't-void': isVoid(cell(row, column)) }]">
            <template v-for="cell in [cell(row, column)]">
              <span v-if="cell.tone" :class="['t-pill', 't-' + cell.tone]">{{ cell.text }}</span>
              <a v-else-if="cell.href" :href="cell.href" :title="cell.title" :download="cell.download"
                ><bdi>{{ cell.text }}</bdi></a>
              <svg v-else-if="cell.points" class="t-spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img"
                   :aria-label="cell.title"><polyline :points="cell.points" vector-effect="non-scaling-stroke"/></svg>
              <span v-else-if="cell.text !== undefined" :title="cell.title"><bdi>{{ cell.text }}</bdi></span>
              <div v-if="cell.progress !== undefined" class="t-bar" role="progressbar" aria-valuemin="0"
                   aria-valuemax="100" :aria-valuenow="Math.round(100 * cell.progress)" :aria-label="column.label">
                <div :style="{ width: 100 * cell.progress + '%' }"></div>
              </div>
              <div v-if="cell.sub" class="t-sub" :title="cell.sub_title"><bdi>{{ cell.sub }}</bdi></div>
              <button v-for="button in cell.buttons || []" :key="button.name" type="button" class="t-small-button"
                      :aria-label="button.label + ' ' + (row.label || row.id)"
                      @click="$emit('press', row.id, button.name)">{{ button.label }}</button>
            </template>
          </td>
        </tr>
        <tr v-if="!rows.length" class="t-none"><td :colspan="columns.length + (selectable ? 1 : 0)">None</td></tr>
      </tbody>
    </table>
  </div>`,
};
