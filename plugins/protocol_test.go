package plugins

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

const protocolPage = "../docs/protocol.md"

// The page has a section for each message and method, and in it a row for each
// field and value, with its number and type.
func TestProtocolPageIsWhole(t *testing.T) {
	text, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for section := range strings.SplitSeq(string(text), "\n### ") {
		name, rest, _ := strings.Cut(section, "\n")
		rest, _, _ = strings.Cut(rest, "\n## ")
		sections[name] = rest
	}
	rows := 0
	want := func(section protoreflect.Name, row string) {
		rows++
		if !strings.Contains(sections[string(section)], "\n"+row) {
			t.Errorf("section %s has no row %q", section, row)
		}
	}
	messages := pb.File_plugin_proto.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		if _, ok := sections[string(m.Name())]; !ok {
			t.Errorf("there is no section %s", m.Name())
		}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			want(m.Name(), fmt.Sprintf("| `%s` | %d | %s |", f.Name(), f.Number(), typeOf(f)))
		}
		for j := range m.Enums().Len() {
			values := m.Enums().Get(j).Values()
			for k := range values.Len() {
				want(m.Name(), fmt.Sprintf("| `%s` | %d |", values.Get(k).Name(), values.Get(k).Number()))
			}
		}
		delete(sections, string(m.Name()))
	}
	if got := strings.Count(string(text[strings.Index(string(text), "\n## Messages"):strings.Index(string(text), "\n## Limits")]), "\n| `"); got != rows {
		t.Errorf("there are %d fields and values, want %d", got, rows)
	}
	methods := pb.File_plugin_proto.Services().ByName("Plugin").Methods()
	for i := range methods.Len() {
		if name := string(methods.Get(i).Name()); sections[name] == "" {
			t.Errorf("there is no section %s", name)
		}
	}
}

// typeOf is the type of a field as plugin.proto has it.
func typeOf(f protoreflect.FieldDescriptor) string {
	name := f.Kind().String()
	switch {
	case f.Message() != nil:
		name = string(f.Message().Name())
	case f.Enum() != nil:
		name = fmt.Sprintf("%s.%s", f.Enum().Parent().Name(), f.Enum().Name())
	}
	switch {
	case f.IsList():
		return "repeated " + name
	case f.HasOptionalKeyword():
		return "optional " + name
	}
	return name
}

// The limits on the page are those of the code.
func TestProtocolPageHasTheLimits(t *testing.T) {
	text, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("| message to the gateway, with its chunk; on the lane both lengths of the frame together | %d KiB |", maxMessage>>10),
		fmt.Sprintf("both together have at most %d KiB", maxMessage>>10),
		fmt.Sprintf("counts for each of its octets | %d |", maxParts),
		fmt.Sprintf("`max_chunk`, %d KiB; %d KiB if it announces none", maxChunk>>10, smallChunk>>10),
		fmt.Sprintf("| %d MiB, by the limits of the listener |", maxTransaction>>20),
		fmt.Sprintf("| text: of a status, a failure, a fault | %d KiB |", maxText>>10),
		fmt.Sprintf("| statuses and `started` that do not count | %d in a call |", maxIgnored),
		fmt.Sprintf("| faults | %d |", maxFaults),
		fmt.Sprintf("| needs, routes that it diverts to | %d, of %d octets each |", maxTold, maxToldText),
		fmt.Sprintf("A\nframe begins with %d octets", laneHeader),
		fmt.Sprintf("the first %d octets of the mail message", laneFirst),
		fmt.Sprintf("the gateway does so after %.0f seconds", laneIdle.Seconds()),
		fmt.Sprintf("It has %d connections to a process at most", maxLanes),
		fmt.Sprintf("| connections of the lane | %d |", maxLanes),
		fmt.Sprintf("`%sNAME`", laneFeature),
		fmt.Sprintf("| line of the log | %d KiB |", maxLine>>10),
		fmt.Sprintf("| lines of the log | %d at once, %d a second |", burstLines, linesPerSecond),
		fmt.Sprintf("Up to %d MiB may stand before\nthe line", mostBefore>>20),
		fmt.Sprintf("It has %.0f seconds for that", defaultTimes.handshake.Seconds()),
		fmt.Sprintf("every %.0f seconds, and kills a plugin that does\nnot answer within %.0f seconds",
			defaultTimes.checkEvery.Seconds(), defaultTimes.checkTimeout.Seconds()),
		fmt.Sprintf("has %.0f seconds, or %.0f minutes if", configureTimeout.Seconds(), attachTimeout.Minutes()),
		fmt.Sprintf("%s=%s", handshake.MagicCookieKey, handshake.MagicCookieValue),
		fmt.Sprintf("%s=", lifelineEnv), fmt.Sprintf("%s=", attachEnv),
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page has no %q", want)
		}
	}
}

// What the page says that the gateway sends, it sends.
func TestProtocolPageIsSpoken(t *testing.T) { playTranscript(t, protocolPage) }
