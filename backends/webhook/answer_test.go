package webhook

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// What can be read in two ways, or in none, is no answer.
func TestAnswersThatAreNone(t *testing.T) {
	for answer, want := range map[string]string{
		``:                        "want a JSON object",
		`null`:                    "want a JSON object",
		`[]`:                      "want a JSON object",
		`"{}"`:                    "want a JSON object",
		"\ufeff{}":                "want a JSON object",
		`{`:                       "unexpected EOF",
		`{} {}`:                   "something follows",
		`{} x`:                    "something follows",
		`{"verdicts": []}`:        `unknown field "verdicts"`,
		`{"Default": {}}`:         "unknown key",
		`{"defau\u017Ft": {}}`:    "unknown",
		`{"recipients": {}}`:      "cannot unmarshal object",
		`{"add_headers": "X: y"}`: "cannot unmarshal string",
		`{"default": {"code": 250}, "default": {"code": 550}}`:    `"default" comes twice`,
		`{"default": {"code": 250, "code": 550}}`:                 `"code" comes twice`,
		`{"recipients": [{"index": 0, "code": 250, "index": 1}]}`: `"index" comes twice`,
		`{"default": {}}`:                                                      "want one of code, divert and continue",
		`{"default": {"continue": false}}`:                                     "want one of",
		`{"default": {"code": 250, "continue": true}}`:                         "want one of",
		`{"default": {"code": 250, "divert": "quarantine"}}`:                   "want one of",
		`{"default": {"text": "no"}}`:                                          "want one of",
		`{"default": {"continue": true, "text": "yes"}}`:                       "go with a code",
		`{"default": {"divert": "q", "enhanced": "5.7.1"}}`:                    "go with a code",
		`{"default": {"code": "250"}}`:                                         "cannot unmarshal string",
		`{"default": {"code": 250.5}}`:                                         "cannot unmarshal number",
		`{"default": {"code": 200}}`:                                           "code 200 is no answer",
		`{"default": {"code": 354}}`:                                           "code 354 is no answer",
		`{"default": {"code": 421}}`:                                           "code 421 is no answer",
		`{"default": {"code": 600}}`:                                           "code 600 is no answer",
		`{"default": {"code": -1}}`:                                            "code -1 is no answer",
		`{"default": {"code": 550, "enhanced": "4.7.1"}}`:                      "does not go with code 550",
		`{"default": {"code": 550, "enhanced": "5.7"}}`:                        "does not go with code 550",
		`{"default": {"code": 550, "index": 0}}`:                               `unknown field "index"`,
		`{"recipients": [{"code": 250}]}`:                                      "recipients[0] has no index",
		`{"recipients": [null]}`:                                               "recipients[0] has no index",
		`{"recipients": [{"index": 0}]}`:                                       "recipients[0]: want one of",
		`{"recipients": [{"index": 2, "code": 250}]}`:                          "there is no recipient 2",
		`{"recipients": [{"index": -1, "code": 250}]}`:                         "there is no recipient -1",
		`{"recipients": [{"index": 1, "code": 250}, {"index": 1, "code": 5}]}`: "recipient 1 comes twice",
		`{"add_headers": ` + strings.Repeat("[", 100000):                       "max depth",
	} {
		if a, err := parseAnswer([]byte(answer), 2); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: got %+v, %v; want %q", answer, a, err, want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"recipients": [{"index": 0, "code": 550, "enhanced": "5.1.1", "text": "no\r\n"}, {"index": 2, "divert": "q"}], "default": {"continue": true}}`))
	f.Add([]byte(`{"default": {"code": 250}, "add_headers": ["X: y"], "remove_headers": null}`))
	f.Add([]byte(`{"default": {"Code": 250}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := parseAnswer(text, 3)
		if err != nil {
			return
		}
		if len(a.verdicts) != 3 {
			t.Fatalf("%q: %d verdicts", text, len(a.verdicts))
		}
		for _, v := range a.verdicts {
			s := v.status()
			if err := v.check(); err != nil || v.Code != 0 && (s != s.Sanitized() || s.Code != v.Code) {
				t.Errorf("%q: verdict %+v, status %v, %v", text, v, s, err)
			}
		}
		// encoding/json sees the same keys and no others.
		var loose struct{ Default, Recipients, Remove_headers, Add_headers any }
		if err := json.Unmarshal(text, &loose); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if loose.Default == nil && loose.Recipients == nil && !reflect.DeepEqual(a.verdicts, []verdict{{Continue: true}, {Continue: true}, {Continue: true}}) {
			t.Errorf("%q: verdicts out of nothing: %+v", text, a.verdicts)
		}
	})
}
