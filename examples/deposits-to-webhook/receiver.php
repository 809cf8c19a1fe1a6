<?php
// php -S 127.0.0.1:8000 receiver.php: a ledger of deposits, kept right through reorgs. PHP 8, nothing to install.

function genuine(string $key, string $body): bool
{
    $id = $_SERVER['HTTP_WEBHOOK_ID'] ?? '';
    $time = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
    if ($id === '' || !ctype_digit($time) || abs(time() - (int) $time) > 300) {
        return false;
    }
    $right = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$time.$body", $key, true));
    foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $given) {
        if (hash_equals($right, $given)) {
            return true;
        }
    }
    return false;
}

function receive(string $body): int
{
    $key = base64_decode(preg_replace('/^whsec_/', '', getenv('HOOK_SECRET')));
    if (!genuine($key, $body)) {
        return 401;
    }
    $event = json_decode($body, true, 64, JSON_THROW_ON_ERROR);
    $file = getenv('LEDGER') ?: 'ledger.json';
    // Several PHP processes may serve at once: one at a time reads, changes and writes the ledger.
    $lock = fopen("$file.lock", 'c');
    flock($lock, LOCK_EX);
    $ledger = is_file($file)
        ? json_decode(file_get_contents($file), true, 64, JSON_THROW_ON_ERROR)
        : ['seen' => [], 'deposits' => []];
    $id = $_SERVER['HTTP_WEBHOOK_ID'];
    if (isset($ledger['seen'][$id])) {
        return 204; // Sent again because our answer was lost.
    }
    $ledger['seen'][$id] = true;
    // The address's own payments come, too: they are no deposits.
    $deposit = strtolower($event['data']['to']) === strtolower(getenv('DEPOSIT_ADDRESS'));
    if ($event['op'] === 'apply' && $deposit) {
        $ledger['deposits'][$event['emission']] = $event['data'];
    } elseif ($event['op'] === 'retract') {
        unset($ledger['deposits'][$event['emission']]);
    }
    $json = json_encode(['seen' => (object) $ledger['seen'], 'deposits' => (object) $ledger['deposits']], JSON_THROW_ON_ERROR);
    if (file_put_contents("$file.new", $json) !== strlen($json) || !rename("$file.new", $file)) {
        throw new RuntimeException("cannot write $file");
    }
    return 204;
}

try {
    http_response_code($_SERVER['REQUEST_METHOD'] === 'POST' ? receive(file_get_contents('php://input')) : 405);
} catch (Throwable $error) {
    error_log((string) $error);
    http_response_code(500); // Not stored: it will be sent again.
}
