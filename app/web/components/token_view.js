// A document as the model sees it: trained tokens are tinted, masked ones grey, omitted ones struck through; special
// tokens are framed. All text is interpolated.
const SPECIAL = /(<\|[A-Za-z0-9_./-]{1,40}\|>|<\/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[\/?INST\])/;

export default {
  props: { segments: Array },
  methods: {
    pieces(text) {
      return text.split(SPECIAL).map((piece, number) => ({ text: piece, special: number % 2 === 1 }));
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
