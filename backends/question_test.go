package backends

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestCredentialsHideThePassword(t *testing.T) {
	var log strings.Builder
	c := Credentials{Mechanism: "PLAIN", User: "user", Password: "secret"}
	slog.New(slog.NewJSONHandler(&log, nil)).Info("login", "credentials", c)
	slog.New(slog.NewTextHandler(&log, nil)).Info("login", "credentials", c)
	fmt.Fprintf(&log, "%v %+v %s", c, &c, c)
	if text := log.String(); strings.Contains(text, "secret") || !strings.Contains(text, "PLAIN of") {
		t.Errorf("got %s", text)
	}
}
