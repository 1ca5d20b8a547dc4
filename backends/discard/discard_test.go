package discard

import (
	"testing"

	"github.com/mailgw/mailgw/backends/backendtest"
)

func TestConformance(t *testing.T) {
	b, err := New(Defaults)
	if err != nil {
		t.Fatal(err)
	}
	if err := backendtest.Test(b, backendtest.Options{Final: true, IgnoresMessage: true}); err != nil {
		t.Error(err)
	}
}
