package plugintest

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/mailgw/mailgw/plugins/internal/pb"
)

// What a plugin answers for one transaction of two recipients, and what is wrong
// with it.
func TestAnswersThatNoPluginGives(t *testing.T) {
	const decided = "statuses { recipient: 0 status { code: 250 } }"
	tests := []struct {
		answers []string
		fault   string
	}{
		{[]string{decided, "returned {}"}, ""},
		{[]string{decided + "statuses { recipient: 1 status { code: 250 } } returned {}"}, ""},
		{[]string{"started: 0 returned {}", decided}, ""},
		{[]string{"first: true chunk: 'a'", "last: true", "returned {}"}, ""},

		{[]string{decided}, "without returned"},
		{[]string{"statuses { recipient: 2 status { code: 250 } } returned {}"}, "recipient 2, whom there is not"},
		{[]string{decided, decided, "returned {}"}, "a second status for recipient 0"},
		{[]string{"returned {}", decided}, "after returned for recipient 0"},
		{[]string{"started: 2"}, "no recipient 2"},
		{[]string{"started: 0 started: 0"}, "recipient 0 is started, but"},
		{[]string{decided, "started: 0"}, "recipient 0 is started, but"},
		{[]string{"returned {}", "started: 1"}, "recipient 1 is started after returned"},
		{[]string{"started: 1 returned {}", decided}, "after returned for recipient 0"},
		{[]string{"started: 1 returned {}"}, "recipient 1 was started, and has no status"},
		{[]string{"returned {}", "returned {}"}, "more than statuses after returned"},
		{[]string{"returned {}", "chunk: 'a'"}, "more than statuses after returned"},
	}
	for _, tt := range tests {
		h := newHeard(2)
		var err error
		for _, text := range tt.answers {
			m := &pb.ToGateway{}
			if bad := prototext.Unmarshal([]byte(text), m); bad != nil {
				t.Fatal(bad)
			}
			if err == nil {
				err = h.take(m)
			}
		}
		if err == nil {
			err = h.end()
		}
		if (err == nil) != (tt.fault == "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%q: got %v, want %q", tt.answers, err, tt.fault)
		}
	}
}
