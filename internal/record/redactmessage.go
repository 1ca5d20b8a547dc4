package record

import (
	"bytes"
	"fmt"
	"mime"
	"regexp"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
)

// redactMessage keeps how a message is built: its header fields and parts, in
// their order, the types of parts and how they are encoded, its lines and their
// length. The rest becomes x's, addresses in the fields that have them become
// pseudonyms, and so do boundaries. It takes any octets.
func (p *pseudonyms) redactMessage(message []byte) []byte {
	m := &messageRedactor{pseudonyms: p, header: true, plain: true}
	for line := range bytes.Lines(message) {
		m.line(line)
	}
	m.endField()
	return m.out.Bytes()
}

// A messageRedactor goes through a message by its lines.
type messageRedactor struct {
	*pseudonyms
	out      bytes.Buffer
	open     []string // boundaries of the parts around, the innermost last
	header   bool     // of the message, or of a part
	field    []byte   // of the header, as far as it was read
	fields   int      // of this header
	boundary string   // that this header announces
	embeds   bool     // what follows this header is a message
	plain    bool     // what follows is not encoded
}

func (m *messageRedactor) line(line []byte) {
	if m.delimiter(line) {
		return
	}
	switch {
	case m.header && backends.IsHeaderLine(line, m.fields > 0):
		if line[0] != ' ' && line[0] != '\t' {
			m.endField()
			m.fields++
		}
		m.field = append(m.field, line...)
	case m.header:
		m.endHeader()
		m.out.Write(crossOut(line))
	default:
		m.out.Write(crossOut(line))
	}
}

// delimiter reports whether a line parts two parts, and writes it if so: RFC
// 2046, section 5.1.1.
func (m *messageRedactor) delimiter(line []byte) bool {
	text := strings.TrimRight(string(line), " \t\r\n")
	for i, boundary := range slices.Backward(m.open) {
		rest, ok := strings.CutPrefix(text, "--"+boundary)
		if !ok || rest != "" && rest != "--" {
			continue
		}
		m.endField()
		m.header, m.fields, m.boundary, m.embeds, m.plain = rest == "", 0, "", false, true
		m.open = m.open[:i+1]
		if rest != "" {
			m.open = m.open[:i]
		}
		fmt.Fprintf(&m.out, "--%s%s%s", m.pseudonym(boundary), rest, lineEnd(line))
		return true
	}
	return false
}

func (m *messageRedactor) pseudonym(boundary string) string {
	return fmt.Sprintf("boundary%d", m.boundaries.of(boundary))
}

// endHeader goes on with what the header has announced.
func (m *messageRedactor) endHeader() {
	m.endField()
	m.header = m.embeds && m.plain
	if m.boundary != "" {
		m.open = append(m.open, m.boundary)
	}
	m.fields, m.boundary, m.embeds, m.plain = 0, "", false, true
}

// endField writes the field that was read.
func (m *messageRedactor) endField() {
	if m.field == nil {
		return
	}
	name, value, _ := strings.Cut(string(m.field), ":")
	m.field = nil
	known := knownField(name)
	if known == "" {
		known = fmt.Sprintf("X-Redacted-%d", m.pseudonyms.fields.of(strings.ToLower(name)))
	}
	m.out.WriteString(known + ":" + m.value(known, value))
}

// value redacts what a field has after its colon.
func (m *messageRedactor) value(name, value string) string {
	end := lineEnd([]byte(value))
	text := strings.TrimSuffix(value, end)
	switch kept := knownFields[name]; {
	case kept.mediaType:
		return m.mediaType(name, text) + end
	case kept.addresses:
		return m.addressText(text) + end
	case kept.values != nil && kept.values.MatchString(strings.TrimSpace(text)):
		m.plain = m.plain && !encodings.MatchString(strings.TrimSpace(text))
		return value
	}
	return string(crossOut([]byte(value)))
}

// harmlessTypes are the types that tell nothing of people. Of another one its
// first half stays.
var harmlessTypes = regexp.MustCompile(`^(inline|attachment|` +
	`text/(plain|html|enriched|calendar|csv|xml|markdown|rfc822-headers)|` +
	`multipart/(mixed|alternative|related|signed|encrypted|report|digest|parallel)|` +
	`message/(rfc822|global|delivery-status|global-delivery-status|disposition-notification|feedback-report|partial|external-body)|` +
	`image/(png|jpeg|gif|webp|tiff|bmp|svg\+xml)|audio/(mpeg|wav|ogg)|video/(mp4|mpeg|webm)|` +
	`application/(octet-stream|pdf|zip|gzip|json|xml|rtf|msword|ms-tnef|ics|javascript|pgp-signature|pgp-encrypted|pgp-keys|(x-)?pkcs7-(signature|mime)|` +
	`x-(zip-compressed|7z-compressed|rar-compressed|tar|msdownload)|vnd\.ms-(excel|powerpoint|outlook|tnef)|` +
	`vnd\.openxmlformats-officedocument\.(wordprocessingml\.document|spreadsheetml\.sheet|presentationml\.presentation)|` +
	`vnd\.oasis\.opendocument\.(text|spreadsheet|presentation)))$`)

// topTypes are those of RFC 2046.
var topTypes = []string{"text", "multipart", "message", "image", "audio", "video", "application"}

// harmlessTypeParams are the values of parameters that tell nothing of people.
var harmlessTypeParams = map[string]*regexp.Regexp{
	"charset":     regexp.MustCompile(`(?i)^(us-ascii|utf-8|utf-16|iso-8859-\d{1,2}|windows-125\d|koi8-[ru]|gb2312|gbk|gb18030|big5|iso-2022-jp|shift_jis|euc-(jp|kr)|binary)$`),
	"format":      regexp.MustCompile(`(?i)^(flowed|fixed)$`),
	"delsp":       regexp.MustCompile(`(?i)^(yes|no)$`),
	"report-type": regexp.MustCompile(`(?i)^(delivery-status|disposition-notification|feedback-report)$`),
	"type":        harmlessTypes,
}

// mediaType keeps the type, the parameters that are harmless, and that there are
// others.
func (m *messageRedactor) mediaType(name, text string) string {
	kind, params, err := mime.ParseMediaType(text)
	top, _, _ := strings.Cut(kind, "/")
	switch {
	case err != nil:
		return string(crossOut([]byte(text)))
	case harmlessTypes.MatchString(kind):
	case slices.Contains(topTypes, top):
		kind = top + "/x-redacted"
	default:
		return string(crossOut([]byte(text)))
	}
	redacted := map[string]string{}
	for key, value := range params {
		switch {
		case key == "boundary" && top == "multipart" && value != "":
			m.boundary = value
			redacted[key] = m.pseudonym(value)
		case harmlessTypeParams[key] != nil && harmlessTypeParams[key].MatchString(value):
			redacted[key] = value
		case key == "name" || key == "filename":
			redacted[key] = string(crossOut([]byte(value)))
		}
	}
	m.embeds = name == "Content-Type" && (kind == "message/rfc822" || kind == "message/global")
	return " " + mime.FormatMediaType(kind, redacted)
}

// inText finds addresses in the text of a field.
var inText = regexp.MustCompile(`("(\\.|[^"\\\r\n])*"|[^\s<>()\[\],;:@\\"]+)@(\[[^\]\s]*\]|[^\s<>()\[\],;:@\\"]+)`)

// addressText puts pseudonyms in the place of addresses, and keeps what parts
// them.
func (m *messageRedactor) addressText(text string) string {
	var b strings.Builder
	for text != "" {
		at := inText.FindStringIndex(text)
		if at == nil {
			at = []int{len(text), len(text)}
		}
		b.WriteString(strings.Map(func(r rune) rune {
			if strings.ContainsRune("<>(),;:\" \t\r\n", r) {
				return r
			}
			return 'x'
		}, text[:at[0]]))
		if at[0] < at[1] {
			b.WriteString(m.address(text[at[0]:at[1]]))
		}
		text = text[at[1]:]
	}
	return b.String()
}

// crossOut makes x's of all octets but those that end lines, or fold them.
func crossOut(text []byte) []byte {
	crossed := bytes.Clone(text)
	for i, c := range crossed {
		folds := (c == ' ' || c == '\t') && (i == 0 || text[i-1] == '\n')
		if c != '\r' && c != '\n' && !folds {
			crossed[i] = 'x'
		}
	}
	return crossed
}

// lineEnd returns what ends a line: CRLF, LF, or nothing at the end of the
// message.
func lineEnd(line []byte) string {
	for _, end := range []string{"\r\n", "\n"} {
		if bytes.HasSuffix(line, []byte(end)) {
			return end
		}
	}
	return ""
}

// What stays of a field. The zero kept is nothing.
type kept struct {
	addresses bool           // as pseudonyms
	mediaType bool           // with the parameters that are harmless
	values    *regexp.Regexp // those that match
}

var encodings = regexp.MustCompile(`(?i)^(base64|quoted-printable)$`)

// knownFields are the fields whose names stay.
var knownFields = map[string]kept{
	"Content-Type":              {mediaType: true},
	"Content-Disposition":       {mediaType: true},
	"Content-Transfer-Encoding": {values: regexp.MustCompile(`(?i)^(7bit|8bit|binary|base64|quoted-printable)$`)},
	"MIME-Version":              {values: regexp.MustCompile(`^1\.0$`)},
	"Date":                      {values: regexp.MustCompile(`^(\w{3}, )?\d{1,2} \w{3} \d{4} \d\d:\d\d(:\d\d)? [+-]\d{4}$`)},
	"Precedence":                {values: regexp.MustCompile(`(?i)^(bulk|junk|list)$`)},
	"Auto-Submitted":            {values: regexp.MustCompile(`(?i)^(no|auto-generated|auto-replied)$`)},
	"Importance":                {values: regexp.MustCompile(`(?i)^(low|normal|high)$`)},
	"X-Priority":                {values: regexp.MustCompile(`^[1-5]$`)},
	"X-Spam-Flag":               {values: regexp.MustCompile(`(?i)^(yes|no)$`)},

	"From":          {addresses: true},
	"Sender":        {addresses: true},
	"Reply-To":      {addresses: true},
	"To":            {addresses: true},
	"Cc":            {addresses: true},
	"Bcc":           {addresses: true},
	"Resent-From":   {addresses: true},
	"Resent-Sender": {addresses: true},
	"Resent-To":     {addresses: true},
	"Resent-Cc":     {addresses: true},
	"Return-Path":   {addresses: true},
	"Delivered-To":  {addresses: true},
	"X-Original-To": {addresses: true},
	"Errors-To":     {addresses: true},
	"Message-ID":    {addresses: true},
	"In-Reply-To":   {addresses: true},
	"References":    {addresses: true},
	"Content-ID":    {addresses: true},

	"Received":                   {},
	"Subject":                    {},
	"Comments":                   {},
	"Keywords":                   {},
	"Content-Description":        {},
	"User-Agent":                 {},
	"X-Mailer":                   {},
	"List-ID":                    {},
	"List-Unsubscribe":           {},
	"List-Unsubscribe-Post":      {},
	"DKIM-Signature":             {},
	"ARC-Seal":                   {},
	"ARC-Message-Signature":      {},
	"ARC-Authentication-Results": {},
	"Authentication-Results":     {},
	"Received-SPF":               {},
	"X-Spam":                     {},
	"X-Spam-Status":              {},
	"X-Spam-Score":               {},
	"X-Spam-Level":               {},
}

// knownField returns the name of a field as it stands in knownFields, or "".
func knownField(name string) string {
	name = strings.TrimRight(name, " \t")
	for known := range knownFields {
		if strings.EqualFold(known, name) {
			return known
		}
	}
	return ""
}
