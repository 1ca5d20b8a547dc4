package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/backends/webhook"
)

// A hook that takes mail for ann, refuses that for others, and marks what it
// leaves to the next backend. It reads the message as it comes: one that is
// large is in a file of ParseMultipartForm.
func Example() {
	secret := []byte("a secret of 32 octets, at random")

	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		envelope, message, err := verified(secret, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		defer message.Close()
		defer r.MultipartForm.RemoveAll()

		var e struct {
			Client     struct{ Address string }
			Recipients []struct{ Address string }
		}
		if err := json.Unmarshal(envelope, &e); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		verdicts := []map[string]any{}
		for i, to := range e.Recipients {
			switch {
			case strings.HasPrefix(to.Address, "ann@"):
				verdicts = append(verdicts, map[string]any{"index": i, "code": 250, "text": "stored"})
			case strings.HasPrefix(to.Address, "root@"):
				verdicts = append(verdicts, map[string]any{"index": i, "continue": true})
			}
		}
		json.NewEncoder(w).Encode(map[string]any{
			"recipients":  verdicts,
			"default":     map[string]any{"code": 550, "enhanced": "5.1.1", "text": "no such user"},
			"add_headers": []string{"X-Client: " + e.Client.Address},
		})
	}))
	defer hook.Close()

	// The rest is what mailgw does.
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	settings := webhook.Defaults
	settings.URL = hook.URL
	settings.SecretFile = filepath.Join(dir, "secret")
	if err := os.WriteFile(settings.SecretFile, secret, 0o600); err != nil {
		fmt.Println(err)
		return
	}
	backend, err := webhook.New(settings)
	if err != nil {
		fmt.Println(err)
		return
	}
	const message = "Subject: hello\r\n\r\nHello.\r\n"
	tx := &backends.DataContext{Size: int64(len(message)), Body: strings.NewReader(message)}
	for _, address := range []string{"ann@example.org", "bob@example.org", "root@example.org"} {
		tx.Envelope.Recipients = append(tx.Envelope.Recipients, backends.Recipient{Address: address})
	}
	fmt.Println(backends.Run(context.Background(), backend, tx, backends.Hooks{}))
	fmt.Println(tx.Status(0))
	fmt.Println(tx.Status(1))
	// Output:
	// [2] <nil>
	// 250 2.0.0 stored
	// 550 5.1.1 no such user
}

// verified returns the envelope and the message of a genuine request.
func verified(secret []byte, r *http.Request) (envelope []byte, message io.ReadSeekCloser, err error) {
	signature := map[string]string{}
	for field := range strings.SplitSeq(r.Header.Get("Mailgw-Signature"), ",") {
		name, value, _ := strings.Cut(field, "=")
		signature[name] = value
	}
	if t, err := strconv.ParseInt(signature["t"], 10, 64); err != nil || time.Since(time.Unix(t, 0)).Abs() > 5*time.Minute {
		return nil, nil, fmt.Errorf("signature of the time %q", signature["t"])
	}

	envelope = []byte(r.FormValue("envelope"))
	message, _, err = r.FormFile("message")
	if err != nil {
		return nil, nil, err
	}
	digest := sha256.New()
	if _, err := io.Copy(digest, message); err != nil {
		return nil, nil, err
	}
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%s.%x", signature["t"], envelope, digest.Sum(nil))
	said, err := hex.DecodeString(signature["v1"])
	if err != nil || !hmac.Equal(said, mac.Sum(nil)) {
		return nil, nil, fmt.Errorf("wrong signature")
	}
	_, err = message.Seek(0, io.SeekStart)
	return envelope, message, err
}
