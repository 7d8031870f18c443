// A document as the model sees it: trained tokens are tinted, masked ones grey, omitted ones struck through; special
// tokens are framed. All text is interpolated.
export default {
  props: { segments: Array, special: Array },
  methods: {
    pieces(text) {
      const found = [];
      let rest = text;
      while (rest) {
        let first = null;
        for (const token of this.special) {
          const at = rest.indexOf(token);
          if (at >= 0 && (first === null || at < first.at)) first = { at, token };
        }
        if (first === null) {
          found.push({ text: rest, special: false });
          break;
        }
        if (first.at) found.push({ text: rest.slice(0, first.at), special: false });
        found.push({ text: first.token, special: true });
        rest = rest.slice(first.at + first.token.length);
      }
      return found;
    },
  },
  template: `
  <div class="t-tokens" tabindex="0" role="group" aria-label="The text as the model sees it"
    ><template v-for="segment in segments"
      ><component :is="segment.cut ? 's' : segment.trained ? 'mark' : 'span'" :class="{ 't-cut': segment.cut }"
        ><template v-for="piece in pieces(segment.text)"
          ><span v-if="piece.special" class="t-special">{{ piece.text }}</span
          ><template v-else>{{ piece.text }}</template></template></component></template></div>`,
};
